-- usersync: the outbox of users, for SQLite 3.38 or newer.
--
-- Every change of a user is written to user_outbox in the transaction that makes it, and usersync-gateway
-- publishes it from there. Run it again to renew the triggers; `usersync-scheduler outbox install` makes it
-- for other tables and columns. A transaction that applies what came from usersync says so, and nothing is
-- written for it: INSERT INTO usersync_apply VALUES (1), and DELETE FROM usersync_apply before it commits.
-- See docs/OUTBOX.md.

BEGIN IMMEDIATE;

CREATE TABLE IF NOT EXISTS user_outbox (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  user_id      TEXT NOT NULL,
  event        TEXT NOT NULL,
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

DROP TRIGGER IF EXISTS user_outbox_insert;
CREATE TRIGGER user_outbox_insert AFTER INSERT ON "users"
WHEN NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event, payload)
    VALUES (CAST(NEW."id" AS TEXT), 'user.created', json_object('user_id', NEW."id", 'username', CASE typeof(NEW."username") WHEN 'blob' THEN NULL ELSE CAST(NEW."username" AS TEXT) END, 'email', CASE typeof(NEW."email") WHEN 'blob' THEN NULL ELSE CAST(NEW."email" AS TEXT) END, 'status', CASE typeof(NEW."status") WHEN 'blob' THEN NULL ELSE CAST(NEW."status" AS TEXT) END));
END;

DROP TRIGGER IF EXISTS user_outbox_update;
CREATE TRIGGER user_outbox_update AFTER UPDATE ON "users"
WHEN NOT (OLD."id" IS NOT NEW."id" COLLATE BINARY) AND (OLD."username" IS NOT NEW."username" COLLATE BINARY OR OLD."email" IS NOT NEW."email" COLLATE BINARY OR OLD."status" IS NOT NEW."status" COLLATE BINARY) AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event, payload, previous)
    VALUES (CAST(NEW."id" AS TEXT), CASE WHEN OLD."username" IS NOT NEW."username" COLLATE BINARY OR OLD."email" IS NOT NEW."email" COLLATE BINARY THEN 'user.updated' ELSE 'user.status_changed' END, json_object('user_id', NEW."id", 'username', CASE typeof(NEW."username") WHEN 'blob' THEN NULL ELSE CAST(NEW."username" AS TEXT) END, 'email', CASE typeof(NEW."email") WHEN 'blob' THEN NULL ELSE CAST(NEW."email" AS TEXT) END, 'status', CASE typeof(NEW."status") WHEN 'blob' THEN NULL ELSE CAST(NEW."status" AS TEXT) END), NULL);
END;

DROP TRIGGER IF EXISTS user_outbox_rename;
CREATE TRIGGER user_outbox_rename AFTER UPDATE ON "users"
WHEN OLD."id" IS NOT NEW."id" COLLATE BINARY AND NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event, payload)
    VALUES (CAST(OLD."id" AS TEXT), 'user.deleted', json_object('user_id', OLD."id"));
  INSERT INTO user_outbox (user_id, event, payload)
    VALUES (CAST(NEW."id" AS TEXT), 'user.created', json_object('user_id', NEW."id", 'username', CASE typeof(NEW."username") WHEN 'blob' THEN NULL ELSE CAST(NEW."username" AS TEXT) END, 'email', CASE typeof(NEW."email") WHEN 'blob' THEN NULL ELSE CAST(NEW."email" AS TEXT) END, 'status', CASE typeof(NEW."status") WHEN 'blob' THEN NULL ELSE CAST(NEW."status" AS TEXT) END));
END;

DROP TRIGGER IF EXISTS user_outbox_delete;
CREATE TRIGGER user_outbox_delete AFTER DELETE ON "users"
WHEN NOT EXISTS (SELECT 1 FROM usersync_apply)
BEGIN
  INSERT INTO user_outbox (user_id, event, payload)
    VALUES (CAST(OLD."id" AS TEXT), 'user.deleted', json_object('user_id', OLD."id"));
END;

COMMIT;
