//! Evaluation: images to units, waveforms, transcripts and scores ([`run`]), the report on them ([`report`]), and the scores
//! alone ([`score`]).

pub mod listener;
pub mod report;
pub mod run;
pub mod score;
mod writers;
