//! Numbers.

/// Exponents beyond this aren't written out: PostgreSQL's numbers have no more digits.
const LONGEST: usize = 140_000;

pub(super) fn integer(text: &str) -> Option<String> {
    match text {
        "true" | "t" => return Some("1".to_owned()),
        "false" | "f" => return Some("0".to_owned()),
        _ => {}
    }
    let number: i128 = text.trim().parse().ok()?;
    Some(number.to_string())
}

/// A decimal number, also with an exponent, rounded to `scale` digits behind the point and without needless zeros.
pub(crate) fn decimal(text: &str, scale: Option<i32>) -> Option<String> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let told = || whole.bytes().chain(fraction.bytes());
    if told().next().is_none() || !told().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    // Where the point is: this many digits before it, which may be none or beyond the end.
    let point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?;
    if point.unsigned_abs() as usize > LONGEST {
        return None;
    }
    let before = usize::try_from(1 - point).unwrap_or(0);
    let mut digits: Vec<u8> = std::iter::repeat_n(b'0', before).chain(told()).collect();
    let mut point = usize::try_from(point).unwrap_or(0).max(1);
    while digits.len() < point {
        digits.push(b'0');
    }
    if let Some(scale) = scale {
        point += round(&mut digits, point, scale);
    }
    let (whole, fraction) = digits.split_at(point);
    let whole = whole.iter().skip_while(|digit| **digit == b'0');
    let mut written: String = whole.map(|digit| char::from(*digit)).collect();
    if written.is_empty() {
        written.push('0');
    }
    let kept = fraction.iter().rposition(|digit| *digit != b'0');
    if let Some(last) = kept {
        written.push('.');
        written.extend(fraction[..=last].iter().map(|digit| char::from(*digit)));
    }
    if negative && written != "0" {
        written.insert(0, '-');
    }
    Some(written)
}

/// Rounds digits, of which `point` are before the point, to `scale` behind it; how many more are before it now.
fn round(digits: &mut Vec<u8>, point: usize, scale: i32) -> usize {
    let Some(keep) = point.checked_add_signed(scale as isize) else {
        // Less than a half of what is kept.
        digits.fill(b'0');
        return 0;
    };
    if keep >= digits.len() {
        return 0;
    }
    let up = digits[keep] >= b'5';
    digits.truncate(keep);
    let more = usize::from(up && !increment(digits));
    if more > 0 {
        digits.insert(0, b'1');
    }
    // Before the point zeros take the place of what was rounded.
    while digits.len() < point + more {
        digits.push(b'0');
    }
    more
}

/// Adds one to the last digit; says whether there was room.
fn increment(digits: &mut [u8]) -> bool {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return true;
        }
        *digit = b'0';
    }
    false
}

pub(super) fn float(text: &str, single: bool, scale: Option<u32>) -> Option<String> {
    let text = text.trim();
    let number: f64 = text.parse().ok()?;
    if !number.is_finite() {
        return None;
    }
    if let Some(scale) = scale {
        // As MySQL does, which rounds the floating-point number and not its text, and only what is above a whole one.
        let unit = 10_f64.powi(scale.try_into().ok()?);
        let whole = number.floor();
        let rounded = whole + ((number - whole) * unit).round_ties_even() / unit;
        return decimal(&format!("{rounded:.*}", scale as usize), None);
    }
    // Minus zero plus zero is zero.
    Some(match single {
        true => {
            let number: f32 = text.parse().ok()?;
            format!("x{:08x}", (number + 0.0).to_bits())
        }
        false => format!("x{:016x}", (number + 0.0).to_bits()),
    })
}
