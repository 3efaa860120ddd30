-- usersync: the outbox of {table_shown}, for {server}.
--
-- Every change of a user leaves a note in user_outbox, in the transaction that makes it: who changed, and how. usersync-gateway
-- reads the note, then the row, and publishes it. Run this again to renew the triggers; `usersync-scheduler outbox install`
-- makes them for other tables. A session that applies what came from usersync says so, and nothing is noted for it:
-- SET @usersync_apply = 1. See docs/OUTBOX.md.

SET NAMES utf8mb4;
SET SESSION sql_mode = '';
SET SESSION lock_wait_timeout = 10;

-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew. A user's id is
-- kept as it is, whatever the column's type and collation. A service may write rows of its own, with the payload of an event.
SET @usersync_ddl = CONCAT('CREATE TABLE IF NOT EXISTS {outbox_quoted} (
  id           BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  user_id      VARBINARY(3072) NOT NULL,
  event        VARCHAR(32) CHARACTER SET ascii NOT NULL COMMENT ''I, U or D; or the type of the payload'',
  payload      LONGTEXT NULL,
  previous     LONGTEXT NULL,
  state        TINYINT NOT NULL DEFAULT 0 COMMENT ''0 waits, 1 published, 2 failed'',
  error        VARCHAR(1000) NULL,
  created_at   TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  published_at TIMESTAMP(6) NULL DEFAULT NULL,
  tx           BIGINT NULL COMMENT ''the row that was under way'',
  KEY user_outbox_state (state, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 AUTO_INCREMENT = ', CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS UNSIGNED));
PREPARE usersync_ddl FROM @usersync_ddl;
EXECUTE usersync_ddl;
DEALLOCATE PREPARE usersync_ddl;

-- One of an older version; rows that wait are published as they stand.
SET @usersync_ddl = IF((SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = {schema}
    AND table_name = 'user_outbox' AND column_name = 'tx') = 0,
  'ALTER TABLE {outbox_quoted} MODIFY user_id VARBINARY(3072) NOT NULL, ADD COLUMN tx BIGINT NULL', 'DO 0');
PREPARE usersync_ddl FROM @usersync_ddl;
EXECUTE usersync_ddl;
DEALLOCATE PREPARE usersync_ddl;

-- Which outbox this is: nobody can guess it, and one made anew is another one.
CREATE TABLE IF NOT EXISTS {about} (
  epoch    VARCHAR(64) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  first    BIGINT NOT NULL COMMENT 'rows before it were written by an older version',
  approved BIGINT NOT NULL DEFAULT 0 COMMENT 'up to here, any number of users may be deleted',
  format   SMALLINT NOT NULL DEFAULT 2
) ENGINE = InnoDB;
INSERT INTO {about} (epoch, first)
  SELECT {epoch}, (SELECT COALESCE(MAX(id), 0) + 1 FROM {outbox}) FROM DUAL
  WHERE NOT EXISTS (SELECT 1 FROM {about});

-- It takes the ids that sessions have asked for (SET insert_id), so that no note gets one. It is always empty.
CREATE TABLE IF NOT EXISTS {spent} (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY) ENGINE = InnoDB;

{note_script}-- No change slips through between the old triggers and the new, and none is lost where the server refuses a new one: others
-- of another name are made first, and go when the new ones are there. Nobody writes meanwhile.
LOCK TABLES {table} WRITE;
DELIMITER //

{drop_standins}
{standins}
{drop_triggers}
{triggers}
{drop_standins}
DELIMITER ;
UNLOCK TABLES;
