//! A node's disk: a file system of its own, on a file. It can be filled, frozen, and lose its power.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::shell::{run, word};

const GIB: u64 = 1 << 30;
/// Far more than a run writes; the file behind it is sparse.
const SIZE: u64 = 8 * GIB;
/// What fills a disk.
const FILLER: &str = "filler";

#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
    frozen: bool,
    without_power: bool,
}

impl Disk {
    /// Makes and mounts a file system: ext4 for nodes of odd number, XFS for the others.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn make(mount: &Path, node: u8) -> Result<Self> {
        let image = mount.with_extension("image");
        File::create(&image)?.set_len(SIZE)?;
        let make = match node % 2 {
            1 => "mkfs.ext4 -q -m 0 -E lazy_itable_init=1,lazy_journal_init=1",
            _ => "mkfs.xfs -q",
        };
        run(&format!("{make} {}", word(&image)?))?;
        fs::create_dir_all(mount)?;
        let disk = Self {
            image,
            mount: mount.to_owned(),
            frozen: false,
            without_power: false,
        };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        let (image, mount) = (word(&self.image)?, word(&self.mount)?);
        run(&format!("mount -o loop {image} {mount}")).map(drop)
    }

    /// Where the broker keeps its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Takes all the room that is left but `spare` bytes.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn fill(&self, spare: u64) -> Result<()> {
        let path = self.mount.join(FILLER);
        let filler = File::create(&path)?;
        let room = rustix::fs::statvfs(&self.mount)?;
        // What the file system itself needs for the filler is not known exactly: ask for less until it fits.
        let mut bytes = (room.f_bavail * room.f_frsize).saturating_sub(spare);
        let flags = rustix::fs::FallocateFlags::empty();
        while bytes > 0 && rustix::fs::fallocate(&filler, flags, 0, bytes).is_err() {
            bytes = bytes.saturating_sub(4 << 20);
        }
        Ok(())
    }

    /// Lets every write wait until [`Disk::heal`].
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn freeze(&mut self) -> Result<()> {
        run(&format!("fsfreeze -f {}", word(&self.mount)?))?;
        self.frozen = true;
        Ok(())
    }

    /// Gives room back and lets writes go on.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn heal(&mut self) -> Result<()> {
        if self.frozen {
            run(&format!("fsfreeze -u {}", word(&self.mount)?))?;
            self.frozen = false;
        }
        if self.without_power {
            return Ok(());
        }
        match fs::remove_file(self.mount.join(FILLER)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// From now on nothing reaches the disk: what was not synced is lost.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn lose_power(&mut self) -> Result<()> {
        self.without_power = true;
        run(&format!("xfs_io -x -c shutdown {}", word(&self.mount)?)).map(drop)
    }

    pub(crate) fn is_without_power(&self) -> bool {
        self.without_power
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Mounts it again, which recovers it from its journal. Nobody may hold a file on it.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn regain_power(&mut self) -> Result<()> {
        run(&format!("umount {}", word(&self.mount)?)).context("who still uses it?")?;
        self.mount()?;
        self.without_power = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A frozen file system can't be unmounted, and one that is in use goes away with its last user.
        let _ = self.heal();
        if let Ok(mount) = word(&self.mount) {
            let _ = run(&format!("umount -l {mount}"));
        }
    }
}
