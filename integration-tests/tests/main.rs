//! What the parts do together: exactness against PyTorch through servers, failures, whole runs of the real program.

mod bad_input;
mod before;
mod choices;
mod downloads;
mod exact;
mod failures;
mod faults;
mod given_on;
mod http;
mod imported;
mod new_plugin;
mod non_finite;
mod places;
mod precision;
mod predict;
mod processes;
mod program;
mod proxy;
mod relay;
mod resume;
mod runs;
mod shared;
mod support;
mod swarm;
