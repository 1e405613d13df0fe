//! The ways in which a user starts containers, alike enough to be measured in one loop.

pub mod ctr;
pub mod docker;
pub mod oci;

use std::time::Duration;

use anyhow::Result;

use super::contender::Contender;

/// The image that is loaded.
pub const IMAGE: &str = "docker.io/library/bench:latest";
/// What a container that is kept does.
pub const KEEP: [&str; 2] = ["sleep", "100000"];

/// One step of a container's life, by the name of the command.
pub type Verb = &'static str;

/// An engine, or a runtime's own command line.
pub trait Engine {
    /// For people.
    fn name(&self) -> &'static str;

    /// A whole `run --rm … true`.
    ///
    /// # Errors
    /// The command's, with what it said.
    fn run(&self, contender: &Contender, id: &str) -> Result<Duration>;

    /// A container that sleeps; how long each step took.
    ///
    /// # Errors
    /// As of [`Engine::run`]; nothing is left then.
    fn begin(&self, contender: &Contender, id: &str) -> Result<Vec<(Verb, Duration)>>;

    /// `true` in a running container; `nth`: how many were run in it before.
    ///
    /// # Errors
    /// As of [`Engine::run`].
    fn exec(&self, contender: &Contender, id: &str, nth: usize) -> Result<Duration>;

    /// Kills and removes a container.
    ///
    /// # Errors
    /// As of [`Engine::run`].
    fn remove(&self, contender: &Contender, id: &str) -> Result<Duration>;
}

/// A container that is removed when it goes out of scope, so that a failure leaves none.
pub struct Kept<'a> {
    engine: &'a dyn Engine,
    contender: &'a Contender,
    /// Its id.
    pub id: String,
    /// How long each step of its start took.
    pub steps: Vec<(Verb, Duration)>,
    removed: bool,
}

impl<'a> Kept<'a> {
    /// Starts one, and fails if it did not begin in the contender's way.
    ///
    /// # Errors
    /// The engine's.
    pub fn start(engine: &'a dyn Engine, contender: &'a Contender, id: &str) -> Result<Self> {
        let ticket = contender.ready(1)?;
        let steps = engine.begin(contender, id)?;
        let this = Kept { engine, contender, id: id.to_owned(), steps, removed: false };
        contender.came_true(ticket)?;
        Ok(this)
    }

    /// Whose it is.
    pub fn contender(&self) -> &'a Contender {
        self.contender
    }

    /// `true` in it.
    ///
    /// # Errors
    /// The engine's.
    pub fn exec(&self, nth: usize) -> Result<Duration> {
        self.engine.exec(self.contender, &self.id, nth)
    }

    /// Kills and removes it.
    ///
    /// # Errors
    /// The engine's.
    pub fn remove(mut self) -> Result<Duration> {
        self.removed = true;
        self.engine.remove(self.contender, &self.id)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !self.removed
            && let Err(err) = self.engine.remove(self.contender, &self.id)
        {
            eprintln!("    {err:#}");
        }
    }
}
