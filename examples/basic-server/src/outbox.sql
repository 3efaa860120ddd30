-- usersync: the outbox of users, for SQLite 3.38 or newer.
--
-- Every change of a user leaves a note in user_outbox, in the transaction that makes it: who changed, and how. usersync-gateway
-- reads the note, then the row, and publishes it. Run this again to renew the triggers; `usersync-scheduler outbox install`
-- makes them for other tables. A transaction that applies what came from usersync says so, and nothing is noted for it:
-- INSERT INTO usersync_apply VALUES (1), and DELETE FROM usersync_apply before it commits. See docs/OUTBOX.md.

BEGIN IMMEDIATE;

-- A service may write rows of its own, with the payload of an event.
CREATE TABLE IF NOT EXISTS user_outbox (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  user_id      TEXT NOT NULL,
  event        TEXT NOT NULL, -- I, U or D; or the type of the payload
  payload      TEXT,
  previous     TEXT,
  state        INTEGER NOT NULL DEFAULT 0, -- 0 waits, 1 published, 2 failed
  error        TEXT,
  created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  published_at TEXT
);
-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew.
INSERT INTO sqlite_sequence (name, seq)
  SELECT 'user_outbox', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000
  WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'user_outbox');
CREATE INDEX IF NOT EXISTS user_outbox_unpublished ON user_outbox (id) WHERE state = 0;
CREATE INDEX IF NOT EXISTS user_outbox_failed ON user_outbox (id) WHERE state = 2;
CREATE TABLE IF NOT EXISTS usersync_apply (applying INTEGER NOT NULL);

-- Which outbox this is: nobody can guess it, and one made anew is another one.
CREATE TABLE IF NOT EXISTS user_outbox_about (
  epoch    TEXT PRIMARY KEY,
  first    INTEGER NOT NULL, -- rows before it were written by an older version
  approved INTEGER NOT NULL DEFAULT 0, -- up to here, any number of users may be deleted
  format   INTEGER NOT NULL DEFAULT 2
);
INSERT INTO user_outbox_about (epoch, first)
  SELECT lower(hex(randomblob(16))), (SELECT coalesce(max(id), 0) + 1 FROM user_outbox)
  WHERE NOT EXISTS (SELECT 1 FROM user_outbox_about);

DROP TRIGGER IF EXISTS user_outbox_insert;
CREATE TRIGGER user_outbox_insert AFTER INSERT ON "users"
WHEN NEW."id" IS NOT NULL AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event) VALUES (NEW."id", 'I');
END;

DROP TRIGGER IF EXISTS user_outbox_update;
CREATE TRIGGER user_outbox_update AFTER UPDATE ON "users"
WHEN NEW."id" IS NOT NULL AND NOT (OLD."id" IS NOT NEW."id" COLLATE BINARY) AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event) VALUES (NEW."id", 'U');
END;

DROP TRIGGER IF EXISTS user_outbox_rename;
CREATE TRIGGER user_outbox_rename AFTER UPDATE ON "users"
WHEN OLD."id" IS NOT NEW."id" COLLATE BINARY AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event) SELECT OLD."id", 'D' WHERE OLD."id" IS NOT NULL;
  INSERT INTO user_outbox (user_id, event) SELECT NEW."id", 'I' WHERE NEW."id" IS NOT NULL;
END;

DROP TRIGGER IF EXISTS user_outbox_delete;
CREATE TRIGGER user_outbox_delete AFTER DELETE ON "users"
WHEN OLD."id" IS NOT NULL AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event) VALUES (OLD."id", 'D');
END;

COMMIT;
