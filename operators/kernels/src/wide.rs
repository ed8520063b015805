//! Plain loops, compiled once per instruction set and chosen at run time.
//!
//! The loops around the micro-kernel (rounding, GELU, softmax, LayerNorm) are ordinary Rust that the
//! compiler turns into vectors, if it may use them. [`wide`] calls a closure from a function that may:
//! everything `#[inline(always)]` in the closure is compiled with that function's instructions.
//!
//! Limits: a function that the compiler does not inline into the closure keeps the baseline's
//! instructions, and `mul_add` there is a library call: write loops, not iterator chains with closures
//! passed on, and check a profile.

/// Runs `body` with the widest vectors of this machine. The check is one load and a branch.
#[inline(always)]
pub(crate) fn wide<T>(mut body: impl FnMut() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[allow(unsafe_code)]
        // SAFETY (both): the features were found on this CPU in the line before.
        if has_avx512() {
            return unsafe { avx512(&mut body) };
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return unsafe { avx2(&mut body) };
        }
    }
    body()
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// # Safety
/// The CPU has the features.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn avx512<T>(body: &mut impl FnMut() -> T) -> T {
    body()
}

/// # Safety
/// The CPU has the features.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<T>(body: &mut impl FnMut() -> T) -> T {
    body()
}
