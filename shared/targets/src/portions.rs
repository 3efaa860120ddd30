//! Batches in parts that a server takes in one statement.

/// Servers refuse longer statements (`max_allowed_packet`) by closing the connection, which looks like an outage.
const BYTES: usize = 1024 * 1024;

/// `rows` in parts of at most a mebibyte, but for rows that are larger alone.
pub(crate) fn of<T>(mut rows: &[T], size: fn(&T) -> usize) -> Vec<&[T]> {
    let mut portions = Vec::new();
    while !rows.is_empty() {
        let mut bytes = 0;
        let fits = rows.iter().take_while(|row| {
            bytes += size(row);
            bytes <= BYTES
        });
        let (portion, rest) = rows.split_at(fits.count().max(1));
        portions.push(portion);
        rows = rest;
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_full_or_one_row_that_is_too_large() {
        let lengths = |rows: &[usize]| {
            let portions = of(rows, |row| *row);
            portions
                .iter()
                .map(|portion| portion.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&[1; 300]), [300]);
        assert_eq!(lengths(&[BYTES / 2; 5]), [2, 2, 1]);
        assert_eq!(lengths(&[1, 2 * BYTES, 1]), [1, 1, 1]);
    }
}
