//! The nearest known word to a mistyped one.

/// The candidate with the smallest edit distance, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let best = candidates.iter().map(|c| (distance(word, c), *c)).min()?;
    (best.0 <= word.len().max(3) / 2).then_some(best.1)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn typing_errors_find_their_word_and_nonsense_finds_none() {
        let known = ["default_vcpus", "default_memory", "path"];
        assert_eq!(super::nearest("default_memroy", &known), Some("default_memory"));
        assert_eq!(super::nearest("defaultvcpu", &known), Some("default_vcpus"));
        assert_eq!(super::nearest("xyz", &known), None);
        assert_eq!(super::distance("kitten", "sitting"), 3);
    }
}
