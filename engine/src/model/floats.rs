//! Vectors as OpenAI's API writes them for programs: base64 of little-endian 32-bit floats.

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

/// Base64 of a vector, padded.
pub fn floats_to_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// The vector behind base64, padded or not; `None` when it is none.
pub fn floats_of_base64(text: &str) -> Option<Vec<f32>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (floats, rest) = bytes.as_chunks::<4>();
    let floats = floats.iter().map(|four| f32::from_le_bytes(*four));
    rest.is_empty().then(|| floats.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for vector in [vec![], vec![1.0], vec![1.0, 2.0], vec![0.1, -3.5e-20, 7.0]] {
            let text = floats_to_base64(&vector);
            assert_eq!(floats_of_base64(&text), Some(vector.clone()));
            assert_eq!(floats_of_base64(text.trim_end_matches('=')), Some(vector));
        }
        assert_eq!(floats_to_base64(&[1.0, 2.0]), "AACAPwAAAEA=");
        assert_eq!(floats_of_base64("AAAA"), None, "three bytes");
        assert_eq!(floats_of_base64("?"), None);
    }
}
