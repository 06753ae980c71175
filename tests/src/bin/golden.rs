//! Writes a golden image of the present format, once: an image that is there is never replaced.

#![expect(clippy::disallowed_methods, reason = "a tool that writes a file")]

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use hibernet_snapshot::image::Image;
use hibernet_tests::golden::{FOLDER, full_image};

fn main() -> anyhow::Result<()> {
    let image = full_image();
    let version = Image::front(&image)?.format_version;
    let path = Path::new(FOLDER).join(format!("v{version}-full.hib"));
    ensure!(
        !path.exists(),
        "{} is there and stays as it is. If the layout has changed, raise the format version first",
        path.display()
    );
    fs::create_dir_all(FOLDER)?;
    fs::write(&path, image).with_context(|| format!("writing {}", path.display()))?;
    println!("{}: now name it, with its SHA-256, in tests/tests/golden.rs", path.display());
    Ok(())
}
