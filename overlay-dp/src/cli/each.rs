//! Commands with several names: one that fails keeps none of the others from being done, as in
//! Docker.

use anyhow::{Error, Result};
use serde::Serialize;

use super::{complain, print};

/// What became of them.
#[derive(Debug)]
pub struct Each<T> {
    /// What was done, in the order that was asked for.
    pub done: Vec<T>,
    failed: Vec<Error>,
}

impl<T> Each<T> {
    /// Asks for one after the other.
    pub async fn of<N>(
        names: impl IntoIterator<Item = N>,
        ask: impl AsyncFn(N) -> Result<T>,
    ) -> Each<T> {
        let (mut done, mut failed) = (Vec::new(), Vec::<Error>::new());
        for name in names {
            match ask(name).await {
                Ok(one) => done.push(one),
                Err(error) => failed.push(error),
            }
        }
        // Without an agent, the same is true of all.
        failed.dedup_by_key(|error| format!("{error:#}"));
        Each { done, failed }
    }
}

impl<T> Each<Vec<T>> {
    /// Each of them was several.
    pub fn concat(self) -> Each<T> {
        Each {
            done: self.done.into_iter().flatten().collect(),
            failed: self.failed,
        }
    }
}

impl<T: Serialize> Each<T> {
    /// Prints what was done, then each error on a line of its own.
    ///
    /// # Errors
    /// The last one, for the caller to print.
    pub fn print(mut self, json: bool, text: impl FnOnce(&[T]) -> String) -> Result<()> {
        if json || !self.done.is_empty() {
            print(json, &self.done, || text(&self.done))?;
        }
        let last = self.failed.pop();
        for error in &self.failed {
            complain(json, error);
        }
        last.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn one_that_fails_keeps_none_from_being_done() {
        let ask = async |name: &str| match name.strip_prefix('-') {
            Some(why) => bail!("{why}"),
            None => Ok(vec![name.to_owned()]),
        };
        let each = Each::of(["a", "-no", "b", "-never", "c"], ask).await;
        let each = each.concat();
        assert_eq!(each.done, ["a", "b", "c"]);
        let error = each.print(false, |done| done.join("\n")).unwrap_err();
        assert_eq!(error.to_string(), "never");

        let each = Each::of(["-no agent", "-no agent"], ask).await.concat();
        assert_eq!(each.failed.len(), 1);
        let each = Each::of(["a", "b"], ask).await.concat();
        assert!(each.print(true, |_| unreachable!()).is_ok());
    }
}
