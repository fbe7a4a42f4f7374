//! Who is there from the beginning (not with `SEED_DATA=off`): printed by `ballet up shop` from `hello.txt`.

use ballet_service::{Result, Tx};

use crate::commands::{NewUser, insert};
use crate::passwords;

/// Ids are fixed, so that a new start from nothing is the same again.
const USERS: [(&str, &str, &str, &str, &str); 2] = [
    ("00000000-0000-7000-8000-000000000ada", "ada@shop.test", "Ada", "+49 30 5550101", "customer"),
    ("00000000-0000-7000-8000-0000000057af", "staff@shop.test", "Staff", "+49 30 5550102", "staff"),
];
const PASSWORD: &str = "correct-horse-battery";

pub(crate) fn make(tx: &Tx<'_>) -> Result<()> {
    for (id, email, name, phone, role) in USERS {
        let user =
            NewUser { email: email.into(), name: name.into(), password: PASSWORD.into(), phone: Some(phone.into()) };
        insert(tx, id, &user, &passwords::hash_now(&user.password)?, &[role])?;
    }
    Ok(())
}
