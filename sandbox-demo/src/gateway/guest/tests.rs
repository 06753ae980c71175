use super::*;

#[test]
fn a_guest_gets_a_free_address_of_the_gateways_network() {
    let first = |server: [u8; 4], prefix, wanted| {
        let config = dhcp_config(server.into(), prefix, wanted, 1500, Duration::from_secs(60));
        config.map(|config| config.first.to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(first([10, 0, 2, 2], 24, None).as_deref(), Ok("10.0.2.15"));
    assert_eq!(first([10, 0, 2, 15], 24, None).as_deref(), Ok("10.0.2.2"));
    assert_eq!(first([10, 9, 0, 2], 30, None).as_deref(), Ok("10.9.0.1"));
    assert_eq!(first([10, 0, 2, 2], 24, Some([10, 0, 2, 99].into())).as_deref(), Ok("10.0.2.99"));
    let error = first([10, 0, 2, 2], 24, Some([10, 0, 3, 9].into())).expect_err("another network's");
    assert!(error.contains("10.0.3.9") && error.contains("--dhcp-first"), "{error}");
    let error = first([10, 0, 2, 2], 32, None).expect_err("no room");
    assert!(error.contains("--addr"), "{error}");
}

#[test]
fn a_gateways_hardware_address_follows_from_its_address() {
    let mac = default_mac(Some([10, 0, 2, 2].into()));
    assert_eq!(mac.to_string(), "52:55:0a:00:02:02");
    assert!(mac.is_unicast());
}
