//! How code in a helper speaks to the agent.

use crate::channel::{Channel, Message};

/// The helper's end of the channel.
#[derive(Debug)]
pub(crate) struct Report(pub(crate) Channel);

impl Report {
    /// A line for the agent's log. When the agent is gone there is nobody to tell, and the helper ends soon.
    pub(crate) fn warn(&self, text: &str) {
        let _ = self.0.send(&Message::Warning(text.to_owned()));
    }
}
