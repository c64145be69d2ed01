//! Small things that change seldom.

use std::fs;
use std::io::Write as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A JSON file that is replaced as a whole, so that it is valid whenever the agent is killed.
pub struct JsonFile<T> {
    path: PathBuf,
    content: PhantomData<fn(&T) -> T>,
}

impl<T: Default + DeserializeOwned + Serialize> JsonFile<T> {
    /// The file `name` in `dir`, which is made if need be.
    ///
    /// # Errors
    /// When `dir` can't be made.
    pub fn new(dir: &Path, name: &str) -> Result<JsonFile<T>> {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        Ok(JsonFile {
            path: dir.join(name),
            content: PhantomData,
        })
    }

    /// What is stored; the default when there is no file.
    ///
    /// # Errors
    /// When the file is there but can't be read or understood.
    pub fn load(&self) -> Result<T> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(T::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", self.path.display()));
            }
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged: restore it, or run 'overlay-dp detach --force' to begin anew",
                self.path.display()
            )
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When it can't be written; the old one is still there then.
    pub fn save(&self, content: &T) -> Result<()> {
        let dir = self.path.parent().context("a state file has a directory")?;
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer_pretty(&mut file, content)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            fs::File::open(dir)?.sync_all()?;
            Ok(())
        };
        write().with_context(|| format!("can't write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_empty_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = JsonFile::<Vec<u32>>::new(dir.path(), "numbers.json").unwrap();
        assert!(file.load().unwrap().is_empty());
        file.save(&vec![1, 2]).unwrap();
        assert_eq!(file.load().unwrap(), [1, 2]);
        let text = fs::read(&file.path).unwrap();
        fs::write(&file.path, &text[..text.len() - 2]).unwrap();
        assert!(format!("{:#}", file.load().unwrap_err()).contains("detach --force"));
    }
}
