//! From real outputs to bits and back: the sign rule and the bit order.

use crate::code::{CodeLen, HashCode};
use crate::error::{Error, ErrorKind, Result};

/// Binarizes code logits: bit `j` is 1 where `logits[j] > 0`. An exact zero is 0, so a code never
/// depends on the sign of a zero.
///
/// # Errors
/// `CodeLenMismatch` unless there is one logit a bit; `InvalidArgument` on a logit that is not finite.
pub fn binarize(len: CodeLen, logits: &[f32]) -> Result<HashCode> {
    if logits.len() != len.bits() {
        return Err(ErrorKind::CodeLenMismatch {
            expected: len.bits(),
            got: logits.len(),
        }
        .into());
    }
    let mut code = HashCode::zeros(len);
    for (bit_idx, &logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(Error::invalid(format!(
                "code logit {bit_idx} is {logit}, expected a finite number"
            )));
        }
        if logit > 0.0 {
            code.set_bit(bit_idx, true);
        }
    }
    Ok(code)
}

/// The code as -1 and +1, one number a bit.
pub fn signs(code: &HashCode) -> Vec<f32> {
    (0..code.code_len().bits())
        .map(|bit| if code.bit(bit) { 1.0 } else { -1.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_rule() {
        let len = CodeLen::new(16).unwrap();
        let mut logits = [-1.0; 16];
        logits[0] = 0.5;
        logits[1] = 0.0;
        logits[2] = -0.0;
        logits[15] = f32::MIN_POSITIVE;
        let code = binarize(len, &logits).unwrap();
        assert_eq!(code.words(), [1 | 1 << 15]);
        assert_eq!(binarize(len, &signs(&code)).unwrap(), code);
        logits[3] = f32::NAN;
        assert!(binarize(len, &logits).is_err());
        assert!(binarize(len, &logits[1..]).is_err());
    }
}
