//! JSON numbers compared exactly, as they are written: `0.1` equals `1e-1` and is less than `0.10000000000000000001`.
use std::cmp::Ordering;

/// A decimal number in its shortest form: `0.digits * 10^exponent`, no zero at either end of the digits.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

/// Compares two JSON numbers by value.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left, right) = (Decimal::read(left), Decimal::read(right));
    let sign = |d: &Decimal| match (d.digits.is_empty(), d.negative) {
        (true, _) => 0,
        (false, true) => -1,
        (false, false) => 1,
    };
    let by_sign = sign(&left).cmp(&sign(&right));
    if by_sign != Ordering::Equal {
        return by_sign;
    }
    let size = left
        .exponent
        .cmp(&right.exponent)
        .then_with(|| left.digits.cmp(&right.digits));
    if left.negative { size.reverse() } else { size }
}

/// The number as a 64-bit integer, where it is written as one: no fraction, no exponent.
pub fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

impl Decimal {
    /// Reads a number that JSON's grammar allows.
    fn read(text: &str) -> Self {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], power(&text[at + 1..])),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let mut exponent = exponent.saturating_add(whole.len() as i64);
        let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
        digits.drain(..zeros);
        exponent = exponent.saturating_sub(zeros as i64);
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.is_empty() {
            exponent = 0;
        }
        Self {
            negative,
            digits,
            exponent,
        }
    }
}

/// An exponent; one beyond any document's length saturates, which leaves the order as it is.
fn power(text: &str) -> i64 {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let size = digits.parse::<i64>().unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
    if negative { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_by_value_whatever_the_spelling() {
        use Ordering::*;
        for (left, right, is) in [
            ("1", "1.0", Equal),
            ("0.1", "1e-1", Equal),
            ("100", "1E+2", Equal),
            ("-0", "0.00", Equal),
            ("0.1", "0.10000000000000000001", Less),
            ("9007199254740993", "9007199254740992", Greater),
            ("-2", "-1", Less),
            ("-2", "1", Less),
            ("-1e400", "1e-400", Less),
            ("1e400", "1e401", Less),
            ("0.009", "0.01", Less),
            ("12", "9", Greater),
            ("1e99999999999999999999", "1e5", Greater),
        ] {
            assert_eq!(compare(left, right), is, "{left} {right}");
            assert_eq!(compare(right, left), is.reverse(), "{right} {left}");
        }
    }

    /// Against the integers themselves, in several spellings.
    #[test]
    fn agrees_with_integers() {
        let mut rng = fastrand::Rng::with_seed(7);
        let spell = |n: i64, how: u32| match how {
            0 => n.to_string(),
            1 => format!("{n}.0"),
            2 => format!("{n}0e-1"),
            _ => format!(
                "{}{}.{:03}e3",
                if n < 0 { "-" } else { "" },
                n.abs() / 1000,
                n.abs() % 1000
            ),
        };
        for _ in 0..20_000 {
            let (a, b) = (rng.i64(-12_000..12_000), rng.i64(-12_000..12_000));
            let (left, right) = (spell(a, rng.u32(0..4)), spell(b, rng.u32(0..4)));
            assert_eq!(compare(&left, &right), a.cmp(&b), "{left} {right}");
        }
    }

    #[test]
    fn integers_are_written_as_integers() {
        assert_eq!(integer("-9223372036854775808"), Some(i64::MIN));
        for other in ["1.0", "1e3", "9223372036854775808"] {
            assert_eq!(integer(other), None, "{other}");
        }
    }
}
