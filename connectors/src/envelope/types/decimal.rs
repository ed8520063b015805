//! Decimals of any length: what `decimal.handling.mode` makes of NUMERIC, in all three modes.
//!
//! The idea: a sign, digits and a scale, so that nothing is rounded on the way: PostgreSQL's
//! `numeric(5,-2)` arrives with scale 2046 (its type modifier read as unsigned) and 2049 digits, and
//! is 1200 all the same.
//!
//! ```text
//! precise: unscaled integer, big endian two's complement, and a scale ┐
//! string:  "12.34"                                                    ├─▶ Decimal ─▶ i128 at the column's scale
//! double:  12.34 (shortest text that reads back)                      ┘
//! ```
//!
//! Limits: [`BYTES_MAX`], [`SCALE_MAX`].

/// Longest unscaled integer; PostgreSQL's NUMERIC has at most 147,455 digits, ours 38: what is longer
/// could only be refused, and its digits cost quadratic time.
pub const BYTES_MAX: usize = 4_096;
/// Largest absolute scale or exponent.
pub const SCALE_MAX: i32 = 20_000;

/// `(−1)^is_negative × digits × 10^−scale`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    is_negative: bool,
    /// Without leading zeros; empty is zero.
    digits: String,
    scale: i32,
}

impl Decimal {
    /// Reads `-12.50`, `1e-7`, `+3`, `.5`. `None` for everything else, `NaN` included.
    pub fn parse(text: &str) -> Option<Decimal> {
        let (is_negative, text) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let has_digits = !(whole.is_empty() && fraction.is_empty());
        if !has_digits || !are_digits(whole) || !are_digits(fraction) {
            return None;
        }
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        Self::new(is_negative, &format!("{whole}{fraction}"), scale)
    }

    /// Reads an unscaled integer in big endian two's complement, as Java's `BigInteger` writes it.
    pub fn from_unscaled(bytes: &[u8], scale: i32) -> Option<Decimal> {
        if bytes.len() > BYTES_MAX {
            return None;
        }
        let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
        let mut magnitude = bytes.to_vec();
        if is_negative {
            magnitude.iter_mut().for_each(|byte| *byte = !*byte);
            for byte in magnitude.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
        Self::new(is_negative, &decimal_digits(&magnitude), scale)
    }

    fn new(is_negative: bool, digits: &str, scale: i32) -> Option<Decimal> {
        if scale.unsigned_abs() > SCALE_MAX.unsigned_abs() {
            return None;
        }
        Some(Decimal {
            is_negative,
            digits: digits.trim_start_matches('0').to_owned(),
            scale,
        })
    }

    /// The unscaled integer at another scale; `None` where digits would be lost or 38 are not
    /// enough. Nothing is rounded.
    pub fn at_scale(&self, scale: i8) -> Option<i128> {
        let more = i32::from(scale) - self.scale;
        let digits = match usize::try_from(more) {
            _ if self.digits.is_empty() => return Some(0),
            Ok(more) if self.digits.len() + more > 39 => return None,
            Ok(more) => format!("{}{}", self.digits, "0".repeat(more)),
            Err(_) => {
                let less = usize::try_from(-more).ok()?;
                let keep = self.digits.len().checked_sub(less)?;
                let (kept, lost) = self.digits.split_at(keep);
                if lost.bytes().any(|byte| byte != b'0') {
                    return None;
                }
                kept.to_owned()
            }
        };
        let value: i128 = digits.parse().ok()?;
        Some(if self.is_negative { -value } else { value })
    }

    /// The nearest double.
    pub fn to_f64(&self) -> Option<f64> {
        let sign = if self.is_negative { "-" } else { "" };
        let digits = if self.digits.is_empty() {
            "0"
        } else {
            &self.digits
        };
        format!("{sign}{digits}e{}", -self.scale).parse().ok()
    }
}

impl std::fmt::Display for Decimal {
    /// Plain notation with all digits of the scale: `-12.50`, `1200`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_negative && !self.digits.is_empty() {
            f.write_str("-")?;
        }
        let Ok(scale) = usize::try_from(self.scale) else {
            let zeros = self.scale.unsigned_abs() as usize;
            return match &*self.digits {
                "" => f.write_str("0"),
                digits => write!(f, "{digits}{}", "0".repeat(zeros)),
            };
        };
        let padded = format!("{:0>width$}", self.digits, width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        match scale {
            0 => f.write_str(whole),
            _ => write!(f, "{whole}.{fraction}"),
        }
    }
}

/// Big endian bytes to decimal digits: long multiplication in base 10⁹, quadratic in the length.
fn decimal_digits(bytes: &[u8]) -> String {
    const BASE: u64 = 1_000_000_000;
    let mut limbs: Vec<u32> = Vec::new();
    for byte in bytes {
        let mut carry = u64::from(*byte);
        for limb in &mut limbs {
            let value = u64::from(*limb) * 256 + carry;
            *limb = (value % BASE) as u32;
            carry = value / BASE;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    let mut digits = String::new();
    for limb in limbs.iter().rev() {
        digits.push_str(&format!("{limb:09}"));
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_every_digit() {
        let cases = [
            ("12.34", 2, Some(1234)),
            ("-12.30", 1, Some(-123)),
            ("12.34", 1, None),
            ("1e3", 2, Some(100_000)),
            ("1.5E-3", 4, Some(15)),
            ("0.000", 0, Some(0)),
            ("1200", -2, Some(12)),
            (
                "99999999999999999999999999999999999999",
                0,
                Some(10i128.pow(38) - 1),
            ),
        ];
        for (text, scale, expected) in cases {
            let decimal = Decimal::parse(text).unwrap();
            assert_eq!(decimal.at_scale(scale), expected, "{text} at {scale}");
        }
        for bad in ["", "-", ".", "NaN", "1e", "1_000", "0x1", "1e999999"] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn unscaled_integers_of_any_length() {
        assert_eq!(
            Decimal::from_unscaled(&[0x30, 0x39], 2)
                .unwrap()
                .to_string(),
            "123.45"
        );
        assert_eq!(
            Decimal::from_unscaled(&[0xff], 0).unwrap().to_string(),
            "-1"
        );
        assert_eq!(
            Decimal::from_unscaled(&[0x80], 1).unwrap().to_string(),
            "-12.8"
        );
        for value in [0i128, 1, -1, 255, 256, i128::MAX, i128::MIN + 1] {
            let decimal = Decimal::from_unscaled(&value.to_be_bytes(), 0).unwrap();
            assert_eq!(decimal.to_string(), value.to_string());
        }
        for scale in [i32::MIN, i32::MAX, -20_001, 20_001] {
            assert_eq!(Decimal::from_unscaled(&[1], scale), None, "{scale}");
        }
    }
}
