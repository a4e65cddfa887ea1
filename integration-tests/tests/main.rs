//! Tests across crates: exactness against PyTorch through servers, failures, and whole runs of the real program.

mod adapters;
mod admission;
#[cfg(target_os = "linux")]
mod attacks;
mod block_placement;
mod calibration;
mod cobatching;
#[cfg(target_os = "linux")]
mod cuda_link;
mod data_files;
mod device_stacks;
mod doctor;
mod downloads;
mod failures;
mod heads;
mod hub_push;
mod init;
mod invalid_input;
mod layers;
mod long_texts;
mod lying_servers;
mod many_runs;
mod new_plugin;
mod operating;
mod peft_import;
mod plan;
mod plugin_options;
mod precision;
mod predict;
mod prefix_cache;
mod pytorch_parity;
mod relay;
mod resume;
mod revocation;
mod secured;
mod serve_task;
mod server_processes;
mod swarm;
mod sweeps;
mod training_runs;
