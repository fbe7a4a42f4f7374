//! Whole-system tests, in one binary: they share one running shop.

/// Ends a test whose services cannot run here.
macro_rules! needs_python {
    () => {
        if !crate::small::python() {
            return;
        }
    };
}

mod cli;
mod conductor;
mod examples;
mod people;
mod readme;
mod seams;
mod shop_api;
mod shop_orders;
mod shop_trouble;
mod small;

use std::sync::LazyLock;

use ballet_tests::Ballet;

/// The shop that most tests share. It ends with this process: its standard input does.
static SHOP: LazyLock<Ballet> = LazyLock::new(Ballet::shop);
