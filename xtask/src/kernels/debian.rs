//! Debian's kernels, unpacked below target/kernels and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output, root, run, step};

/// A kernel as its package has it.
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// What QEMU boots.
    pub image: PathBuf,
    /// `/lib/modules/<release>` of the package.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series such as "6.1" that apt knows, downloaded now if it is not
    /// there. Its predecessors are removed.
    ///
    /// # Errors
    /// When apt knows none, or it can't be downloaded or unpacked.
    pub fn fetch(series: &str) -> Result<Kernel> {
        let package = newest(series)
            .or_else(|| {
                run(Command::new("apt-get").args(["update", "-qq"])).ok()?;
                newest(series)
            })
            .with_context(|| {
                format!(
                    "apt knows no Linux {series} for x86-64: is it another release than Debian 12?"
                )
            })?;
        let dir = root().join("target/kernels").join(series);
        let unpacked = dir.join(&package);
        if !unpacked.is_dir() {
            step(format!("downloading {package} into target/kernels"));
            let partial = dir.join("partial");
            if dir.exists() {
                fs::remove_dir_all(&dir)?;
            }
            fs::create_dir_all(&dir)?;
            run(Command::new("apt-get")
                .current_dir(&dir)
                // Its own user could not write here.
                .args(["-o", "APT::Sandbox::User=root", "-qq", "download", &package]))?;
            let deb = files(&dir)?
                .into_iter()
                .find(|file| file.extension().is_some_and(|name| name == "deb"))
                .context("apt-get has downloaded nothing")?;
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
            fs::remove_file(deb)?;
            fs::rename(&partial, &unpacked)?;
        }
        Kernel::unpacked(&unpacked)
    }

    fn unpacked(dir: &Path) -> Result<Kernel> {
        let image = files(&dir.join("boot"))?
            .into_iter()
            .find(|file| name(file).starts_with("vmlinuz-"))
            .with_context(|| format!("no kernel in {}", dir.display()))?;
        let release = name(&image).replace("vmlinuz-", "");
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|modules| dir.join(modules).join(&release))
            .into_iter()
            .find(|modules| modules.is_dir())
            .with_context(|| format!("no modules in {}", dir.display()))?;
        Ok(Kernel {
            release,
            image,
            modules,
        })
    }
}

/// The package's name has the version, and a new name comes with each update.
fn newest(series: &str) -> Option<String> {
    let pattern = format!(
        "^linux-image-{}[.].*-cloud-amd64$",
        series.replace('.', "[.]")
    );
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = found.lines().filter_map(|line| line.split(' ').next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a name, in order, which is how versions compare.
fn numbers(name: &str) -> Vec<u64> {
    let parts = name.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_compare_by_their_numbers() {
        for [older, newer] in [
            [
                "linux-image-6.1.0-9-cloud-amd64",
                "linux-image-6.1.0-57-cloud-amd64",
            ],
            [
                "linux-image-6.12.9+deb12-cloud-amd64",
                "linux-image-6.12.117+deb12-cloud-amd64",
            ],
            [
                "linux-image-6.12.9+deb12-cloud-amd64",
                "linux-image-6.12.9+deb13-cloud-amd64",
            ],
        ] {
            assert!(numbers(older) < numbers(newer), "{older} {newer}");
        }
    }
}
