//! The models, written once over [`crate::backend::Backend`].

pub mod config;
