-- usersync: the outbox of {table_shown}, for MySQL 8 and MariaDB 10.6 or newer.
--
-- Every change of a user is written to user_outbox in the transaction that makes it, and usersync-gateway
-- publishes it from there. Run it again to renew the triggers; `usersync-scheduler outbox install` makes it
-- for other tables and columns. A session that applies what came from usersync says so, and nothing is
-- written for it: SET @usersync_apply = 1. See docs/OUTBOX.md.

SET NAMES utf8mb4;
SET SESSION sql_mode = '';
SET SESSION lock_wait_timeout = 10;

-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew.
SET @usersync_create = CONCAT('CREATE TABLE IF NOT EXISTS {outbox_quoted} (
  id           BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  user_id      VARCHAR(255) NOT NULL,
  event        VARCHAR(32) CHARACTER SET ascii NOT NULL,
  payload      LONGTEXT NULL,
  previous     LONGTEXT NULL,
  state        TINYINT NOT NULL DEFAULT 0 COMMENT ''0 waits, 1 published, 2 failed'',
  error        VARCHAR(1000) NULL,
  created_at   TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  published_at TIMESTAMP(6) NULL DEFAULT NULL,
  KEY user_outbox_state (state, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 AUTO_INCREMENT = ', CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS UNSIGNED));
PREPARE usersync_create FROM @usersync_create;
EXECUTE usersync_create;
DEALLOCATE PREPARE usersync_create;

-- No change slips through between the old triggers and the new.
LOCK TABLES {table} WRITE;
DELIMITER //

DROP TRIGGER IF EXISTS {insert_trigger} //
CREATE TRIGGER {insert_trigger} AFTER INSERT ON {table} FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({new_id_text}, 'user.created', {new_document});
  END IF;
END //

DROP TRIGGER IF EXISTS {update_trigger} //
CREATE TRIGGER {update_trigger} AFTER UPDATE ON {table} FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    IF {id_changed} THEN
      INSERT INTO {outbox} (user_id, event, payload)
        VALUES ({old_id_text}, 'user.deleted', {old_gone});
      INSERT INTO {outbox} (user_id, event, payload)
        VALUES ({new_id_text}, 'user.created', {new_document});
    ELSEIF {changed} THEN
      INSERT INTO {outbox} (user_id, event, payload, previous)
        VALUES ({new_id_text}, IF({more_changed}, 'user.updated', 'user.status_changed'), {new_document}, {previous});
    END IF;
  END IF;
END //

DROP TRIGGER IF EXISTS {delete_trigger} //
CREATE TRIGGER {delete_trigger} AFTER DELETE ON {table} FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({old_id_text}, 'user.deleted', {old_gone});
  END IF;
END //

DELIMITER ;
UNLOCK TABLES;
