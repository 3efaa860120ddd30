//! The rows of the table, read ahead page by page, and what each would be as an event.

use std::io::Read;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::mpsc;
use usersync_core::{
    event::{Envelope, Event, EventType},
    user_id::UserId,
};
use usersync_source::{Database, Layout, SourceError, SourceName, UserRow};

use super::part::{Spill, filled, hash_of};

/// Rows in a page.
const PAGE: u32 = 2_000;
/// Pages read ahead.
const AHEAD: usize = 2;
/// How often a page is asked for again, on a new connection.
const TRIES: u32 = 5;

/// A user of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// As the table spells it.
    pub id: String,
    /// Of the id as NATS spells it.
    pub hash: u64,
    /// The mapped members as JSON; empty when they can't be read.
    pub document: Vec<u8>,
    /// Why they can't.
    unreadable: Option<String>,
}

impl Row {
    pub(super) fn new(id: String, user_id: &UserId, document: Vec<u8>) -> Self {
        Self {
            id,
            hash: hash_of(user_id),
            document,
            unreadable: None,
        }
    }

    /// A row whose id is no user's can't be used, and belongs anywhere.
    fn of(row: UserRow) -> Self {
        let user_id = row.id.parse().unwrap_or(UserId::Number(0));
        let (document, unreadable) = match row.document {
            Ok(document) => (document, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        Self {
            unreadable,
            ..Self::new(row.id, &user_id, document)
        }
    }

    pub(super) fn write(&self, to: &mut Spill) -> anyhow::Result<()> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        to.write(&length(self.id.as_bytes()))?;
        to.write(&length(&self.document))?;
        to.write(&self.hash.to_le_bytes())?;
        to.write(self.id.as_bytes())?;
        to.write(&self.document)
    }

    pub(super) fn read(from: &mut impl Read) -> anyhow::Result<Option<Self>> {
        let (mut lengths, mut hash) = ([[0; 4]; 2], [0; 8]);
        for length in &mut lengths {
            if !filled(from, length)? {
                return Ok(None);
            }
        }
        filled(from, &mut hash)?;
        let [mut id, mut document] =
            lengths.map(|length| vec![0; u32::from_le_bytes(length) as usize]);
        filled(from, &mut id)?;
        filled(from, &mut document)?;
        Ok(Some(Self {
            id: String::from_utf8(id).context("a temporary file of the load was changed")?,
            hash: u64::from_le_bytes(hash),
            document,
            unreadable: None,
        }))
    }
}

/// The `user.created` that a row would be; why it can't be one, without its values.
pub(crate) fn event(source: &SourceName, row: &Row) -> Result<Event, String> {
    match &row.unreadable {
        Some(reason) => Err(reason.clone()),
        None => of_document(source, &row.document),
    }
}

/// The same of a document.
pub(crate) fn of_document(source: &SourceName, document: &[u8]) -> Result<Event, String> {
    let envelope = Envelope {
        kind: Some(EventType::Created),
        id: Some(format!("{source}:load")),
        timestamp: Some(Timestamp::now()),
    };
    let mut event = Event::of_row(document, envelope).map_err(|invalid| invalid.to_string())?;
    event.source = Some(source.to_string());
    Ok(event)
}

/// Pages of rows, in the order of ids.
pub(crate) struct Rows(mpsc::Receiver<Result<Vec<Row>, SourceError>>);

impl Rows {
    /// Begins to read.
    pub(crate) fn read(database: Database, layout: Layout) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(pages(database, layout, sender));
        Self(receiver)
    }

    /// The next page, `None` after the last.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Row>>> {
        let page = self.0.recv().await.transpose();
        page.context("reading users of the main database")
    }
}

async fn pages(
    mut database: Database,
    layout: Layout,
    pages: mpsc::Sender<Result<Vec<Row>, SourceError>>,
) {
    let mut after: Option<String> = None;
    let mut failures = 0;
    loop {
        match database.page(&layout, after.as_deref(), PAGE).await {
            Ok(page) => {
                failures = 0;
                let Some(last) = page.last() else { return };
                after = Some(last.id.clone());
                let rows = page.into_iter().map(Row::of).collect();
                if pages.send(Ok(rows)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                failures += 1;
                if failures == TRIES {
                    let _ = pages.send(Err(error)).await;
                    return;
                }
                tracing::warn!(%error, "can't read users; trying again");
                tokio::time::sleep(super::PATIENCE * failures).await;
                if let Ok(fresh) = database.again().await {
                    database = fresh;
                }
            }
        }
    }
}
