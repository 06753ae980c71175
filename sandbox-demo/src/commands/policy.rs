//! Egress policies: checked without a gateway, and given to a running one.

use std::path::Path;

use serde::Serialize;

use super::print;
use crate::control::ControlClient;
use crate::control::PolicyReply;
use crate::control::Request;
use crate::egress::Policy;
use crate::egress::PolicyRule;

/// A policy that was read.
#[derive(Serialize)]
struct Checked<'a> {
    rules: &'a [PolicyRule],
    text: String,
}

/// Reads a policy and prints what it means.
pub(crate) fn policy_check(file: &Path, json: bool) -> anyhow::Result<()> {
    let (policy, _) = Policy::read(file)?;
    let checked = Checked { rules: &policy.rules, text: policy.text() };
    print(json, &checked, || checked.text.clone())
}

/// Reads a policy and has a running gateway put it in force.
pub(crate) fn policy_load(file: &Path, control: &Path, json: bool) -> anyhow::Result<()> {
    let (_, text) = Policy::read(file)?;
    let done: PolicyReply = ControlClient::connect(control)?.call(&Request::Policy { text })?;
    print(json, &done, || format!("{} rules in force, {} flows ended", done.rules, done.ended))
}
