//! A runtime's table in an engine's configuration, found by the keys that lead to it; everything else in the file stays
//! as it is, to the byte.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Key, Table, TableLike};

use crate::error::DeployError;

/// A file as a document.
///
/// # Errors
/// What is no TOML.
pub fn parse(path: &Path, text: &str) -> Result<DocumentMut, DeployError> {
    text.parse().map_err(|source| DeployError::Toml { path: path.to_owned(), source: Box::new(source) })
}

/// What these keys lead to.
pub fn get<'a>(doc: &'a DocumentMut, keys: &[&str]) -> Option<&'a Item> {
    keys.iter().try_fold(doc.as_item(), |item, key| item.as_table_like()?.get(key))
}

/// Puts a table where these keys lead, and returns what was there. The tables on the way that are missing get no
/// headers of their own.
///
/// # Errors
/// Something on the way that is no table.
pub fn put(doc: &mut DocumentMut, path: &Path, keys: &[&str], table: Table) -> Result<Option<Item>, DeployError> {
    let Some((last, way)) = keys.split_last() else { return Ok(None) };
    let mut here: &mut dyn TableLike = doc.as_table_mut();
    for (depth, key) in way.iter().enumerate() {
        let next = here.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        here = next
            .as_table_like_mut()
            .ok_or_else(|| DeployError::NoTable { path: path.to_owned(), key: keys[..=depth].join(".") })?;
    }
    Ok(here.insert(last, Item::Table(table)))
}

/// Takes away what these keys lead to, and the tables on the way that only had that and no header of their own.
pub fn take(doc: &mut DocumentMut, keys: &[&str]) -> Option<Item> {
    fn take_from(table: &mut dyn TableLike, keys: &[&str]) -> Option<Item> {
        let (first, rest) = keys.split_first()?;
        if rest.is_empty() {
            return table.remove(first);
        }
        let next = table.get_mut(first)?;
        let taken = take_from(next.as_table_like_mut()?, rest)?;
        if next.as_table().is_some_and(|t| t.is_implicit() && t.is_empty()) {
            table.remove(first);
        }
        Some(taken)
    }
    take_from(doc.as_table_mut(), keys)
}

/// A table by itself, as text to be kept; [`from_text`] is its inverse.
pub fn to_text(item: &Item) -> String {
    let mut doc = DocumentMut::new();
    doc.insert("table", item.clone());
    doc.to_string()
}

/// The table that [`to_text`] kept.
///
/// # Errors
/// Text that it did not write.
pub fn from_text(path: &Path, text: &str) -> Result<Table, DeployError> {
    let mut doc = parse(path, text)?;
    match doc.remove("table").map(Item::into_table) {
        Some(Ok(mut table)) => {
            unplace(&mut table);
            Ok(table)
        }
        _ => Err(DeployError::NoTable { path: path.to_owned(), key: "table".into() }),
    }
}

/// Forgets where in its file a table was: it shall come after those that are there.
fn unplace(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        if let Item::Table(inner) = item {
            unplace(inner);
        }
    }
}

/// A dotted key as people read it.
pub fn dotted(keys: &[&str]) -> String {
    let keys: Vec<String> = keys.iter().map(|k| Key::new(*k).to_string()).collect();
    keys.join(".")
}
