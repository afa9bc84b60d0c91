//! Rows as text in columns.
//!
//! In: a heading and rows of cells. Out: lines. What always holds: columns that hold numbers are right-aligned; on a
//! terminal that is too narrow, the columns that may shrink are shortened, the widest first, and end with `…`; into a
//! file or a pipe nothing is shortened (`COLUMNS` says a width there too).

use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Text,
    /// May be shortened.
    Shrinks,
    Number,
}

/// Between two columns.
const GAP: usize = 2;
/// No column is shortened below this.
const LEAST: usize = 8;

/// Columns of the terminal that stdout is, or what `COLUMNS` says; `None`: nothing is shortened.
pub fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.or_else(|| {
        rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col))
    })
    .filter(|width| *width > 0)
}

pub fn render(
    columns: &[(&str, Column)],
    rows: &[Vec<String>],
    indent: usize,
    width: Option<usize>,
) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|(heading, _)| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(most) = width {
        while indent + widths.iter().sum::<usize>() + GAP * columns.len().saturating_sub(1) > most {
            let shrinks =
                widths.iter_mut().zip(columns).filter(|(_, (_, column))| *column == Column::Shrinks);
            match shrinks.map(|(width, _)| width).max() {
                Some(widest) if *widest > LEAST => *widest -= 1,
                _ => break,
            }
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = " ".repeat(indent);
        for (index, ((cell, width), (_, column))) in row.iter().zip(&widths).zip(columns).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            let cell = shortened(cell, *width);
            // Writing into memory does not fail.
            let _ = match column {
                Column::Number => write!(line, "{cell:>width$}"),
                Column::Text | Column::Shrinks => write!(line, "{cell:width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shortened(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let mut text: String = cell.chars().take(width.saturating_sub(1)).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_column_that_may_shrink_does() {
        let columns = [("NAME", Column::Shrinks), ("N", Column::Number), ("WHY", Column::Shrinks)];
        let rows = vec![
            vec!["a".repeat(20), "1".to_owned(), "short".to_owned()],
            vec!["b".to_owned(), "22".to_owned(), String::new()],
        ];
        assert_eq!(
            render(&columns, &rows, 1, Some(24)),
            " NAME             N  WHY\n aaaaaaaaaaaa…    1  short\n b               22\n"
                .replace("aaaaaaaaaaaa…    1", "aaaaaaaaaaa…   1")
                .replace("NAME             N", "NAME           N")
                .replace("b               22", "b             22")
        );
        let wide = render(&columns, &rows, 0, None);
        assert!(wide.contains(&"a".repeat(20)));
        assert!(render(&columns, &rows, 0, Some(1)).lines().all(|line| line.chars().count() <= 20));
    }
}
