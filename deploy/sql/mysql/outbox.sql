-- usersync: the outbox of users, for MySQL 8.
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
SET @usersync_ddl = CONCAT('CREATE TABLE IF NOT EXISTS `user_outbox` (
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
SET @usersync_ddl = IF((SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
    AND table_name = 'user_outbox' AND column_name = 'tx') = 0,
  'ALTER TABLE `user_outbox` MODIFY user_id VARBINARY(3072) NOT NULL, ADD COLUMN tx BIGINT NULL', 'DO 0');
PREPARE usersync_ddl FROM @usersync_ddl;
EXECUTE usersync_ddl;
DEALLOCATE PREPARE usersync_ddl;

-- Which outbox this is: nobody can guess it, and one made anew is another one.
CREATE TABLE IF NOT EXISTS `user_outbox_about` (
  epoch    VARCHAR(64) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  first    BIGINT NOT NULL COMMENT 'rows before it were written by an older version',
  approved BIGINT NOT NULL DEFAULT 0 COMMENT 'up to here, any number of users may be deleted',
  format   SMALLINT NOT NULL DEFAULT 2
) ENGINE = InnoDB;
INSERT INTO `user_outbox_about` (epoch, first)
  SELECT LEFT(SHA2(CONCAT_WS('.', UUID(), RAND(), RAND(), RAND(), NOW(6), CONNECTION_ID()), 256), 32), (SELECT COALESCE(MAX(id), 0) + 1 FROM `user_outbox`) FROM DUAL
  WHERE NOT EXISTS (SELECT 1 FROM `user_outbox_about`);

-- It takes the ids that sessions have asked for (SET insert_id), so that no note gets one. It is always empty.
CREATE TABLE IF NOT EXISTS `user_outbox_spent` (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY) ENGINE = InnoDB;

-- No change slips through between the old triggers and the new, and none is lost where the server refuses a new one: others
-- of another name are made first, and go when the new ones are there. Nobody writes meanwhile.
LOCK TABLES `users` WRITE;
DELIMITER //

DROP TRIGGER IF EXISTS `user_outbox_before_new` //
DROP TRIGGER IF EXISTS `user_outbox_insert_new` //
DROP TRIGGER IF EXISTS `user_outbox_update_new` //
DROP TRIGGER IF EXISTS `user_outbox_delete_new` //

CREATE TRIGGER `user_outbox_before_new` BEFORE INSERT ON `users` FOR EACH ROW
usersync_5: BEGIN
  -- Which row is under way: what REPLACE deletes comes back by the same one.
  SET @usersync_row = IF(CAST(@usersync_row AS CHAR) REGEXP '^[0-9]{1,18}$', @usersync_row, CONNECTION_ID() << 24) + 1;
END //

CREATE TRIGGER `user_outbox_insert_new` AFTER INSERT ON `users` FOR EACH ROW
usersync_5: BEGIN
  -- Whoever renames the id's column goes on writing; the relay sees that nothing is noted.
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND NEW.`id` IS NOT NULL THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    INSERT INTO `user_outbox` (user_id, event, tx) VALUES (NEW.`id`, 'I', @usersync_row);
  -- It would write over what the application has changed and nobody has heard of yet.
  ELSEIF CAST(@usersync_apply AS BINARY) = 'blind users' THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER `user_outbox_update_new` AFTER UPDATE ON `users` FOR EACH ROW
usersync_5: BEGIN
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  -- What happens most often comes first, in one condition: each takes up to a tenth of the time of an insert.
  IF OLD.`id` = NEW.`id` AND @usersync_apply IS NULL AND @@insert_id = 0 THEN
    INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'U');
  ELSEIF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    IF OLD.`id` = NEW.`id` THEN
      INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'U');
    ELSE
      -- Without a row: who takes the id that another gives up is somebody else.
      IF OLD.`id` IS NOT NULL THEN
        INSERT INTO `user_outbox` (user_id, event) VALUES (OLD.`id`, 'D');
      END IF;
      IF NEW.`id` IS NOT NULL THEN
        INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'I');
      END IF;
    END IF;
  ELSEIF CAST(@usersync_apply AS BINARY) = 'blind users' THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER `user_outbox_delete_new` AFTER DELETE ON `users` FOR EACH ROW
usersync_5: BEGIN
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND OLD.`id` IS NOT NULL THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    INSERT INTO `user_outbox` (user_id, event, tx) VALUES (OLD.`id`, 'D', @usersync_row);
  END IF;
END //

DROP TRIGGER IF EXISTS `user_outbox_before` //
DROP TRIGGER IF EXISTS `user_outbox_insert` //
DROP TRIGGER IF EXISTS `user_outbox_update` //
DROP TRIGGER IF EXISTS `user_outbox_delete` //

CREATE TRIGGER `user_outbox_before` BEFORE INSERT ON `users` FOR EACH ROW
usersync_5: BEGIN
  -- Which row is under way: what REPLACE deletes comes back by the same one.
  SET @usersync_row = IF(CAST(@usersync_row AS CHAR) REGEXP '^[0-9]{1,18}$', @usersync_row, CONNECTION_ID() << 24) + 1;
END //

CREATE TRIGGER `user_outbox_insert` AFTER INSERT ON `users` FOR EACH ROW
usersync_5: BEGIN
  -- Whoever renames the id's column goes on writing; the relay sees that nothing is noted.
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND NEW.`id` IS NOT NULL THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    INSERT INTO `user_outbox` (user_id, event, tx) VALUES (NEW.`id`, 'I', @usersync_row);
  -- It would write over what the application has changed and nobody has heard of yet.
  ELSEIF CAST(@usersync_apply AS BINARY) = 'blind users' THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER `user_outbox_update` AFTER UPDATE ON `users` FOR EACH ROW
usersync_5: BEGIN
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  -- What happens most often comes first, in one condition: each takes up to a tenth of the time of an insert.
  IF OLD.`id` = NEW.`id` AND @usersync_apply IS NULL AND @@insert_id = 0 THEN
    INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'U');
  ELSEIF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    IF OLD.`id` = NEW.`id` THEN
      INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'U');
    ELSE
      -- Without a row: who takes the id that another gives up is somebody else.
      IF OLD.`id` IS NOT NULL THEN
        INSERT INTO `user_outbox` (user_id, event) VALUES (OLD.`id`, 'D');
      END IF;
      IF NEW.`id` IS NOT NULL THEN
        INSERT INTO `user_outbox` (user_id, event) VALUES (NEW.`id`, 'I');
      END IF;
    END IF;
  ELSEIF CAST(@usersync_apply AS BINARY) = 'blind users' THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER `user_outbox_delete` AFTER DELETE ON `users` FOR EACH ROW
usersync_5: BEGIN
  DECLARE EXIT HANDLER FOR 1054 BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND OLD.`id` IS NOT NULL THEN
    IF @@insert_id > 0 THEN
      INSERT IGNORE INTO `user_outbox_spent` () VALUES ();
      DELETE FROM `user_outbox_spent` WHERE id = LAST_INSERT_ID();
    END IF;
    INSERT INTO `user_outbox` (user_id, event, tx) VALUES (OLD.`id`, 'D', @usersync_row);
  END IF;
END //

DROP TRIGGER IF EXISTS `user_outbox_before_new` //
DROP TRIGGER IF EXISTS `user_outbox_insert_new` //
DROP TRIGGER IF EXISTS `user_outbox_update_new` //
DROP TRIGGER IF EXISTS `user_outbox_delete_new` //

DELIMITER ;
UNLOCK TABLES;

-- How the triggers are that note changes, for whoever may execute this and nothing else: a server shows triggers to those
-- who may make some. The same for the procedure that they call. NULL where there is none of this name. One that is there stays: with it would go the rights to execute it.
DELIMITER //

CREATE FUNCTION IF NOT EXISTS `user_outbox_trigger`(named VARCHAR(64)) RETURNS LONGTEXT CHARACTER SET utf8mb4
READS SQL DATA SQL SECURITY DEFINER
RETURN COALESCE((SELECT CONCAT(event_object_table, CHAR(10 USING utf8mb4), action_statement) FROM information_schema.triggers
  WHERE trigger_schema = DATABASE() AND trigger_name = named), (SELECT CONCAT(CHAR(10 USING utf8mb4), routine_name)
  FROM information_schema.routines WHERE routine_schema = DATABASE() AND routine_name = named AND routine_type = 'PROCEDURE')) //

DELIMITER ;
