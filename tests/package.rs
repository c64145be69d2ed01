//! What is shipped: the Debian package, CNI's configuration, the Kubernetes manifest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Run in mount, PID and network namespaces of its own with a directory, a package, and what is to
/// be done in a copy of this system that keeps no change.
const COPY: &str = r#"
set -e
dir=$1
mount --make-rprivate /
mount -t tmpfs overlay-lab $dir
mkdir $dir/upper $dir/work $dir/root
mount -t overlay -o lowerdir=/,upperdir=$dir/upper,workdir=$dir/work overlay-lab $dir/root
mount -t proc proc $dir/root/proc
mount --rbind /dev $dir/root/dev
mount -t tmpfs overlay-lab $dir/root/run
cp "$2" $dir/root/tmp/overlay-dp.deb
exec chroot $dir/root sh -exc "$3"
"#;

/// Installs, uses, removes and purges it. Nothing of it may be there before or after.
const LIFE: &str = r#"
rm -rf /var/lib/overlay-dp /etc/netns
dpkg --force-depends -i /tmp/overlay-dp.deb
overlay-dp --version
echo '{"cniVersion":"1.0.0"}' | CNI_COMMAND=VERSION /usr/lib/cni/overlay-dp | grep supportedVersions
/usr/lib/netavark/overlay-dp info | grep api_version
zcat /usr/share/man/man1/overlay-dp-container-add.1.gz | grep -q resolv
bash -c '. /usr/share/bash-completion/completions/overlay-dp; complete -p overlay-dp'
test -f /usr/share/zsh/vendor-completions/_overlay-dp
test -f /usr/share/fish/vendor_completions.d/overlay-dp.fish
test -f /usr/share/doc/overlay-dp/copyright
test -f /usr/lib/systemd/system/overlay-dp.service
! overlay-dp status
mkdir -p /var/lib/overlay-dp/default /run/overlay-dp/default
touch /var/lib/overlay-dp/default/x
echo 'OVERLAY_DP_TOKEN=x' > /etc/default/overlay-dp
dpkg --force-depends -i /tmp/overlay-dp.deb
test -f /var/lib/overlay-dp/default/x
dpkg -r overlay-dp
test -f /etc/default/overlay-dp
dpkg -P overlay-dp
test -z "$(find /usr /etc /var/lib /run -name '*overlay-dp*' -not -path '/var/lib/dpkg/*')"
! grep -q '^Package: overlay-dp$' /var/lib/dpkg/status
echo purged
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dist(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("dist")
        .join(file);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Says why, unless that is a failure here.
fn skipped(why: &str) {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "{why}, and CI=true forbids to skip this");
    eprintln!("SKIPPED: {why}");
}

#[test]
fn the_debian_package_comes_and_goes() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        skipped("installing a package needs root");
        return Ok(());
    }
    if !root().join("target/tools/bin/cargo-deb").exists() {
        skipped("no cargo-deb yet: 'cargo xtask deb' compiles it");
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["xtask", "deb", "--debug"])
        .current_dir(root())
        .output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "{said}");
    let written = |line: &str| {
        Some(
            line.strip_prefix("==> ")?
                .strip_suffix(" written")?
                .to_owned(),
        )
    };
    let mut lines = said.lines().rev();
    let deb = lines.find_map(written).with_context(|| said.to_string())?;

    let depends = Command::new("dpkg-deb")
        .args(["-f", &deb, "Depends"])
        .output()?;
    let depends = String::from_utf8(depends.stdout)?;
    for package in ["libc6", "nftables"] {
        ensure!(depends.contains(package), "no {package}: {depends}");
    }
    let dir = std::env::temp_dir().join(format!("overlay-dp-package-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let lived = Command::new("unshare")
        .args([
            "--mount", "--net", "--pid", "--fork", "sh", "-c", COPY, "copy",
        ])
        .args([dir.as_os_str(), deb.as_ref(), LIFE.as_ref()])
        .output();
    fs::remove_dir_all(&dir)?;
    let lived = lived?;
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&lived.stdout),
        String::from_utf8_lossy(&lived.stderr)
    );
    ensure!(
        lived.status.success() && shown.contains("purged"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn the_manifest_fits_the_unit_and_the_conflist() -> Result<()> {
    let text = dist("kubernetes/overlay-dp.yaml")?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let kinds: Vec<&str> = objects.iter().filter_map(|o| o["kind"].as_str()).collect();
    ensure!(
        kinds == ["Namespace", "Secret", "ConfigMap", "DaemonSet"],
        "{kinds:?}"
    );
    let [_, secret, config, set] = &objects[..] else {
        unreachable!("four kinds were found");
    };

    // Pods have the cluster's DNS, and the rest as everywhere.
    let conflist = config["data"]["10-overlay-dp.conflist"].as_str();
    let conflist: Value = serde_json::from_str(conflist.context("no conflist")?)?;
    let mut shipped: Value = serde_json::from_str(&dist("cni/10-overlay-dp.conflist")?)?;
    let capabilities = shipped["plugins"][0]["capabilities"].as_object_mut();
    capabilities.context("no capabilities")?.remove("dns");
    ensure!(conflist == shipped, "{conflist:#}");

    let pod = &set["spec"]["template"]["spec"];
    ensure!(pod["hostNetwork"] == true, "{pod:#}");
    ensure!(
        set["spec"]["selector"]["matchLabels"] == set["spec"]["template"]["metadata"]["labels"]
    );
    let agent = &pod["containers"][0];
    let words = agent["command"].as_array().context("no command")?;
    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
    let unit = dist("overlay-dp.service")?;
    let of_unit = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let mut wanted = String::from("--bounding-set=-all");
    for name in of_unit.context("no capabilities")?.split_whitespace() {
        wanted += &format!(",+{}", name.trim_start_matches("CAP_").to_lowercase());
    }
    ensure!(
        words.contains(&format!("{wanted},+ipc_lock").as_str()),
        "{words:?}"
    );

    // What it is started with is what the command line takes.
    let start = words.iter().position(|word| *word == "/usr/bin/overlay-dp");
    let line: Vec<&str> = words[start.context("no overlay-dp")?..].to_vec();
    let line = line.iter().map(|word| word.replace("$(UPLINK)", "eth0"));
    let line: Vec<String> = line.chain(["--token=x".to_owned()]).collect();
    <overlay_dp::cli::args::Cli as clap::Parser>::try_parse_from(line)?;

    // Each reference has what it refers to.
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|o| o["name"].as_str().map(str::to_owned))
            .collect()
    };
    let volumes = names(&pod["volumes"]);
    for container in [agent, &pod["initContainers"][0]] {
        let mounts = names(&container["volumeMounts"]);
        ensure!(mounts.is_subset(&volumes), "{mounts:?} of {volumes:?}");
    }
    let variables = agent["env"].as_array().context("no variables")?;
    for variable in variables {
        let name = variable["name"].as_str().unwrap_or_default();
        let used = words
            .iter()
            .any(|word| word.contains(&format!("$({name})")));
        ensure!(used || name == "OVERLAY_DP_TOKEN", "{name} is not used");
        for (kind, object, field) in [
            ("secretKeyRef", secret, "stringData"),
            ("configMapKeyRef", config, "data"),
        ] {
            let source = &variable["valueFrom"][kind];
            let Some(key) = source["key"].as_str() else {
                continue;
            };
            ensure!(source["name"] == object["metadata"]["name"], "{source}");
            ensure!(object[field][key].is_string(), "no {key}");
        }
    }
    Ok(())
}
