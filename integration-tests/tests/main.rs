//! What the parts do together: exactness against PyTorch through servers, failures, whole runs of the real program.

#![expect(unreachable_pub, reason = "modules of one test binary")]

mod exact;
mod failures;
mod support;
