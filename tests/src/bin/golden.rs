//! Writes a golden image of each format version of which there is none. One that is there is never replaced.

#![expect(clippy::disallowed_methods, reason = "a tool that writes files")]

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use hibernet_snapshot::image::{FORMAT_VERSION, Image};
use hibernet_tests::golden::{FOLDER, full_image};

fn main() -> anyhow::Result<()> {
    fs::create_dir_all(FOLDER)?;
    for version in 1..=FORMAT_VERSION {
        let path = Path::new(FOLDER).join(format!("v{version}-full.hib"));
        if path.exists() {
            println!("{} is there and stays as it is", path.display());
            continue;
        }
        let image = full_image(version);
        let written = Image::front(&image)?.format_version;
        ensure!(
            written == version,
            "version {version} is asked for, and {written} was written: raise the format version"
        );
        fs::write(&path, image).with_context(|| format!("writing {}", path.display()))?;
        println!("{}: now name it, with its SHA-256, in tests/tests/golden.rs", path.display());
    }
    Ok(())
}
