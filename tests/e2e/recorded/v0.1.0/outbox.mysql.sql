-- usersync: the outbox of users, for MySQL 8 and MariaDB 10.6 or newer.
--
-- Every change of a user is written to user_outbox in the transaction that makes it, and usersync-gateway
-- publishes it from there. Run it again to renew the triggers; `usersync-scheduler outbox install` makes it
-- for other tables and columns. A session that applies what came from usersync says so, and nothing is
-- written for it: SET @usersync_apply = 1. See docs/OUTBOX.md.

SET NAMES utf8mb4;
SET SESSION sql_mode = '';
SET SESSION lock_wait_timeout = 10;

-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew.
SET @usersync_create = CONCAT('CREATE TABLE IF NOT EXISTS `user_outbox` (
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
LOCK TABLES `users` WRITE;
DELIMITER //

DROP TRIGGER IF EXISTS `user_outbox_insert` //
CREATE TRIGGER `user_outbox_insert` AFTER INSERT ON `users` FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    INSERT INTO `user_outbox` (user_id, event, payload)
      VALUES (LEFT(CAST(NEW.`id` AS CHAR), 255), 'user.created', JSON_OBJECT('user_id', NEW.`id`, 'username', CONVERT(NEW.`username` USING utf8mb4), 'email', CONVERT(NEW.`email` USING utf8mb4), 'status', CONVERT(NEW.`status` USING utf8mb4)));
  END IF;
END //

DROP TRIGGER IF EXISTS `user_outbox_update` //
CREATE TRIGGER `user_outbox_update` AFTER UPDATE ON `users` FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    IF NOT (CAST(OLD.`id` AS BINARY) <=> CAST(NEW.`id` AS BINARY)) THEN
      INSERT INTO `user_outbox` (user_id, event, payload)
        VALUES (LEFT(CAST(OLD.`id` AS CHAR), 255), 'user.deleted', JSON_OBJECT('user_id', OLD.`id`));
      INSERT INTO `user_outbox` (user_id, event, payload)
        VALUES (LEFT(CAST(NEW.`id` AS CHAR), 255), 'user.created', JSON_OBJECT('user_id', NEW.`id`, 'username', CONVERT(NEW.`username` USING utf8mb4), 'email', CONVERT(NEW.`email` USING utf8mb4), 'status', CONVERT(NEW.`status` USING utf8mb4)));
    ELSEIF NOT (CAST(OLD.`username` AS BINARY) <=> CAST(NEW.`username` AS BINARY)) OR NOT (CAST(OLD.`email` AS BINARY) <=> CAST(NEW.`email` AS BINARY)) OR NOT (CAST(OLD.`status` AS BINARY) <=> CAST(NEW.`status` AS BINARY)) THEN
      INSERT INTO `user_outbox` (user_id, event, payload, previous)
        VALUES (LEFT(CAST(NEW.`id` AS CHAR), 255), IF(NOT (CAST(OLD.`username` AS BINARY) <=> CAST(NEW.`username` AS BINARY)) OR NOT (CAST(OLD.`email` AS BINARY) <=> CAST(NEW.`email` AS BINARY)), 'user.updated', 'user.status_changed'), JSON_OBJECT('user_id', NEW.`id`, 'username', CONVERT(NEW.`username` USING utf8mb4), 'email', CONVERT(NEW.`email` USING utf8mb4), 'status', CONVERT(NEW.`status` USING utf8mb4)), NULL);
    END IF;
  END IF;
END //

DROP TRIGGER IF EXISTS `user_outbox_delete` //
CREATE TRIGGER `user_outbox_delete` AFTER DELETE ON `users` FOR EACH ROW
BEGIN
  IF COALESCE(@usersync_apply, '') IN ('', '0') THEN
    INSERT INTO `user_outbox` (user_id, event, payload)
      VALUES (LEFT(CAST(OLD.`id` AS CHAR), 255), 'user.deleted', JSON_OBJECT('user_id', OLD.`id`));
  END IF;
END //

DELIMITER ;
UNLOCK TABLES;
