//! What must not compile, with the words it is refused in.

#[test]
fn a_misclassified_field_is_a_compile_error_that_names_the_field_and_the_remedy() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
