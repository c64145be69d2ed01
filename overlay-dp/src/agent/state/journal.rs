//! A file that grows by one line of JSON with each write, so that a change costs the same however
//! much there is.
//!
//! Whenever the agent is killed, or the power fails, the file holds all changes that
//! [`Journal::append`] has returned from, and of the write after them all or nothing: what is behind
//! the last whole line was never acknowledged, and is cut off.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    journal: u32,
}

/// The file, to be written to by one at a time.
pub struct Journal<C> {
    path: PathBuf,
    file: File,
    /// Up to here all is well.
    len: u64,
    changes: usize,
    content: PhantomData<fn(&C)>,
}

impl<C: Serialize + DeserializeOwned> Journal<C> {
    /// The changes in the file, and how many bytes of it they are; `None` when there is no file.
    ///
    /// # Errors
    /// When it can't be read or understood.
    pub fn read(path: &Path) -> Result<Option<(Vec<C>, u64)>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
        };
        parse(&bytes).map(Some).with_context(|| {
            format!(
                "{} is damaged: restore it, or run 'overlay-dp detach --force' to begin anew",
                path.display()
            )
        })
    }

    /// Goes on with a file that was read.
    ///
    /// # Errors
    /// When it can't be written to.
    pub fn resume(path: &Path, changes: usize, len: u64) -> Result<Journal<C>> {
        let file = OpenOptions::new().write(true).open(path);
        let file = file.with_context(|| format!("can't write {}", path.display()))?;
        Ok(Journal {
            path: path.to_owned(),
            file,
            len,
            changes,
            content: PhantomData,
        })
    }

    /// Begins the file anew with these changes. The one before is there until this one is.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(path: &Path, changes: impl Iterator<Item = C>) -> Result<Journal<C>> {
        let dir = path.parent().context("a state file has a directory")?;
        let write = || -> Result<Journal<C>> {
            let changes: Vec<C> = changes.collect();
            let bytes = text(&changes)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            let file = file.persist(path)?;
            File::open(dir)?.sync_all()?;
            Ok(Journal {
                path: path.to_owned(),
                file,
                len: bytes.len() as u64,
                changes: changes.len(),
                content: PhantomData,
            })
        };
        write().with_context(|| format!("can't write {}", path.display()))
    }

    /// How many changes it holds.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Writes changes, all or none of which are there after a crash. Returns when they are on disk.
    ///
    /// # Errors
    /// When that can't be: then it is as if nothing had been written.
    pub fn append(&mut self, changes: &[C]) -> Result<()> {
        let mut write = || -> Result<u64> {
            let bytes = line(changes)?;
            // Also what a failed write has left.
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            self.file.write_all(&bytes)?;
            self.file.sync_data()?;
            Ok(bytes.len() as u64)
        };
        let written = write().with_context(|| format!("can't write {}", self.path.display()))?;
        self.len += written;
        self.changes += changes.len();
        Ok(())
    }
}

/// A whole file with these changes, each in a line.
pub(super) fn text<C: Serialize>(changes: &[C]) -> Result<Vec<u8>> {
    let mut bytes = line(&Head { journal: FORMAT })?;
    for change in changes {
        bytes.extend(line(&[change])?);
    }
    Ok(bytes)
}

fn line<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The changes of all whole lines, and where these end.
pub(super) fn parse<C: DeserializeOwned>(bytes: &[u8]) -> Result<(Vec<C>, u64)> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let head = lines.next().unwrap_or_default();
    let Head { journal } = serde_json::from_slice(head).context("its first line")?;
    if journal != FORMAT {
        bail!("its format is {journal}, and not {FORMAT}: run the overlay-dp that wrote it");
    }
    let mut changes = Vec::new();
    let mut len = head.len();
    while let Some(line) = lines.next() {
        match whole::<C>(line) {
            Some(of_line) => changes.extend(of_line),
            // The last write did not come to its end.
            None if lines.all(|line| whole::<C>(line).is_none()) => break,
            None => bail!("the line at byte {len} makes no sense"),
        }
        len += line.len();
    }
    Ok((changes, len as u64))
}

fn whole<C: DeserializeOwned>(line: &[u8]) -> Option<Vec<C>> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Journal<u32>;

    fn read(path: &Path) -> Vec<u32> {
        Numbers::read(path).unwrap().unwrap().0
    }

    #[test]
    fn whatever_byte_it_ends_at_whole_writes_are_there_and_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        assert!(Numbers::read(&path).unwrap().is_none());
        let mut journal = Numbers::create(&path, [100, 200].into_iter()).unwrap();
        let writes: [&[u32]; 3] = [&[300], &[400, 500, 600], &[700]];
        let mut ends = vec![(journal.len, vec![100, 200])];
        for write in writes {
            journal.append(write).unwrap();
            let all = [&ends.last().unwrap().1[..], write].concat();
            ends.push((journal.len, all));
        }
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, journal.len);
        for end in ends[0].0..=journal.len {
            let (_, whole) = ends.iter().rfind(|(at, _)| *at <= end).unwrap();
            // Cut off, or, as after a power cut, of that length but not written.
            for behind in [&b""[..], &[0; 9], b"[9\n\0\n"] {
                fs::write(&path, [&bytes[..end as usize], behind].concat()).unwrap();
                let (changes, len) = Numbers::read(&path).unwrap().unwrap();
                assert_eq!(changes, *whole, "{end} {behind:?}");
                let mut again = Numbers::resume(&path, changes.len(), len).unwrap();
                again.append(&[800]).unwrap();
                assert_eq!(read(&path), [whole, &[800][..]].concat());
            }
        }
    }

    #[test]
    fn what_was_acknowledged_and_is_damaged_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        Numbers::create(&path, [100, 200, 300].into_iter()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            text.replace("200", "2x0"),
            text.replacen("1}", "2}", 1),
            String::new(),
        ] {
            fs::write(&path, damaged).unwrap();
            let error = Numbers::read(&path).unwrap_err();
            assert!(format!("{error:#}").contains("detach --force"), "{error:#}");
        }
    }

    #[test]
    fn a_write_that_failed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = Numbers::create(&path, [1].into_iter()).unwrap();
        // As a full disk leaves it.
        journal.file.seek(SeekFrom::End(0)).unwrap();
        journal.file.write_all(b"[2").unwrap();
        journal.append(&[3]).unwrap();
        assert_eq!(read(&path), [1, 3]);
    }
}
