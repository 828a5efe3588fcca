//! Named places at which a test may crash the process. They are there with the feature `failpoints`
//! only, and do nothing unless the environment variable `FAILPOINTS` names them.

/// Aborts the process here where a test says so.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name, |_| std::process::abort());
    };
}

pub(super) use crash_point;
