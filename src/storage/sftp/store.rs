//! Storing an object: a temporary file is written and synced, gets the name of the object, and its folder is synced.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::SftpStorage;
use super::failure::Failure;
use super::session::{Folder, NewFile, Session, WriteError, is_synced};
use super::wire::{Extension, Mode, Request};
use crate::storage::error::{Error, ErrorKind};
use crate::storage::layout::folder_of;
use crate::storage::spool::Spool;

/// A temporary file that was created, its folder, and the folders above it if they may be new.
struct Begun<'c> {
    file: NewFile,
    folder: Folder<'c>,
    above: Vec<Folder<'c>>,
}

/// The result of giving an object its name.
enum Published {
    Yes,
    /// The name is taken.
    Taken,
    /// The server lacks hard links, as it turned out. The temporary is gone.
    NoLinks,
}

impl SftpStorage {
    /// Creates a temporary file for an object, and opens its folder; both are made if need be. Returns `None` if the object
    /// exists already.
    fn begin<'c>(&self, session: &'c Session, name: &str, temporary: &str) -> Result<Option<Begun<'c>>, Failure> {
        let path = self.path(folder_of(name));
        let mut folder = session.open_folder(&path)?;
        let look = session.look(&self.path(name))?;
        let created = session.begin(temporary, Mode::Create)?;
        match look.wait() {
            // It or its folder does not exist.
            Err(failure) if failure.is_missing() => {}
            found => {
                session.close_opening(created);
                return found.map(|_| None);
            }
        }
        match (created.wait(), name.rsplit_once('/')) {
            (Err(failure), Some((below, _))) if failure.is_missing() => {
                let new = session.begin_folders(&self.address.path, below)?;
                folder = session.open_folder(&path)?;
                let created = session.begin(temporary, Mode::Create)?;
                let (above, made) = new.wait()?;
                let file = match created.wait() {
                    Err(failure) if !failure.is_lost() => made.and(Err(failure))?,
                    created => created?,
                };
                folder.wait()?;
                Ok(Some(Begun { file, folder, above }))
            }
            (created, _) => {
                let file = created?;
                folder.wait()?;
                Ok(Some(Begun { file, folder, above: Vec::new() }))
            }
        }
    }

    /// Writes a spool to a new temporary file. New folders are synced at the same time.
    fn upload(&self, session: &Session, spool: &Spool, begun: &Begun<'_>) -> Result<(), WriteError> {
        let syncs = begun.above.iter().map(Folder::begin_sync).collect::<Result<Vec<_>, _>>()?;
        session.write(&begun.file, &mut spool.upload(), spool.length())?;
        for sync in syncs {
            self.note_sync(sync.map_or(Ok(false), is_synced)?);
        }
        if !session.has(Extension::Fsync) {
            self.unsynced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives a temporary file the name of its object, and syncs the folder. The temporary name is gone then, unless this
    /// fails.
    fn publish(
        &self,
        session: &Session,
        temporary: &str,
        object: &str,
        folder: &Folder<'_>,
    ) -> Result<Published, Failure> {
        if !session.has(Extension::Hardlink) {
            self.unlinked.store(true, Ordering::Relaxed);
        }
        if self.unlinked.load(Ordering::Relaxed) {
            return self.rename(session, temporary, object, folder);
        }
        let link = Request::Hardlink { from: temporary, to: object };
        // Whatever the result, the temporary is not needed again, except once on a server without links. That it is removed is
        // best effort: listings skip its name.
        let (linked, is_synced) = session.act_and_sync(&link, &Request::Remove { path: temporary }, folder)?;
        match linked {
            Ok(()) => {
                self.links.store(true, Ordering::Relaxed);
                self.note_sync(is_synced);
                Ok(Published::Yes)
            }
            Err(failure) if failure.is_lost() => Err(failure),
            Err(failure) => match session.attributes(object) {
                Ok(_) => Ok(Published::Taken),
                Err(missing) if missing.is_missing() && !self.links.load(Ordering::Relaxed) => {
                    self.unlinked.store(true, Ordering::Relaxed);
                    Ok(Published::NoLinks)
                }
                Err(_) => Err(failure),
            },
        }
    }

    /// The same on a server without hard links.
    fn rename(
        &self,
        session: &Session,
        temporary: &str,
        object: &str,
        folder: &Folder<'_>,
    ) -> Result<Published, Failure> {
        // Some servers replace an existing file.
        match session.attributes(object) {
            Ok(_) => return Ok(Published::Taken),
            Err(failure) if failure.is_missing() => {}
            Err(failure) => return Err(failure),
        }
        match session.act(&Request::Rename { from: temporary, to: object }) {
            Ok(()) => {
                self.note_sync(folder.sync()?);
                Ok(Published::Yes)
            }
            Err(failure) if failure.is_lost() => Err(failure),
            Err(_) if session.attributes(object).is_ok() => Ok(Published::Taken),
            Err(failure) => Err(failure),
        }
    }

    /// Stores a spool with this temporary name.
    pub(super) fn store_over(&self, session: &Session, spool: &Spool, temporary: &str) -> Result<(), Error> {
        let taken = || Err(Error::new(ErrorKind::AlreadyExists, "store", spool.object(), "the object exists"));
        match self.try_to_store(session, spool, temporary)? {
            Published::Yes => Ok(()),
            Published::Taken => taken(),
            // The temporary was removed together with the try to link it.
            Published::NoLinks => match self.try_to_store(session, spool, temporary)? {
                Published::Yes => Ok(()),
                Published::Taken | Published::NoLinks => taken(),
            },
        }
    }

    fn try_to_store(&self, session: &Session, spool: &Spool, temporary: &str) -> Result<Published, Error> {
        let name = spool.object();
        let failed = |failure| self.explain_write(session, failure, "store", name, spool.length());
        let Some(begun) = self.begin(session, name, temporary).map_err(failed)? else { return Ok(Published::Taken) };
        match self.upload(session, spool, &begun) {
            Ok(()) => self.publish(session, temporary, &self.path(name), &begun.folder).map_err(failed),
            Err(WriteError::Failed(failure)) => Err(failed(failure)),
            Err(WriteError::Spool(error)) => Err(Error::io("read the temporary file of", name, error)),
            Err(WriteError::Short { stored }) => {
                let why = format!("the server has {stored} of {} bytes; run again", spool.length());
                Err(Error::new(ErrorKind::Other, "store", name, why))
            }
        }
    }

    /// Removes a temporary file that is not needed, now or with the next object.
    pub(super) fn remove_temporary(&self, session: &Session, temporary: String) {
        let removed = session.act(&Request::Remove { path: &temporary });
        if removed.is_err_and(|failure| failure.is_lost()) {
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(temporary);
        }
    }
}
