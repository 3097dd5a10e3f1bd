//! Which instances tests have launched: `OUTCROP_LAUNCHED` names a file to which every process adds their names. tests/run compares
//! it with the catalog.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Mutex;

/// Notes that an instance is launched.
pub(crate) fn note(name: &str) {
    static NOTED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Some(file) = std::env::var_os("OUTCROP_LAUNCHED") else { return };
    if NOTED.lock().unwrap().get_or_insert_default().insert(name.to_owned()) {
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        // In one piece, for others append at the same time.
        file.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
}
