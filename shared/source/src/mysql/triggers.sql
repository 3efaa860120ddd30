CREATE TRIGGER {before_trigger} BEFORE INSERT ON {table} FOR EACH ROW
{version}: BEGIN
  -- Which row is under way: what REPLACE deletes comes back by the same one.
  SET @usersync_row = IF(CAST(@usersync_row AS CHAR) REGEXP '^[0-9]{1,18}$', @usersync_row, CONNECTION_ID() << 24) + 1;
END //

CREATE TRIGGER {insert_trigger} AFTER INSERT ON {table} FOR EACH ROW
{version}: BEGIN
  -- Whoever renames the id's column goes on writing; the relay sees that nothing is noted.
  DECLARE EXIT HANDLER FOR {unnoted} BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND NEW.{id} IS NOT NULL THEN{own_ids}
    {noted_insert}
  -- It would write over what the application has changed and nobody has heard of yet.
  ELSEIF CAST(@usersync_apply AS BINARY) = {blind} THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER {update_trigger} AFTER UPDATE ON {table} FOR EACH ROW
{version}: BEGIN
  DECLARE EXIT HANDLER FOR {unnoted} BEGIN END;
  -- What happens most often comes first, in one condition: each takes up to a tenth of the time of an insert.
  IF {id_stays} AND @usersync_apply IS NULL AND @@insert_id = 0 THEN
    {noted_update}
  ELSEIF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) THEN{own_ids}
    IF {id_stays} THEN
      {noted_update}
    ELSE
      -- Without a row: who takes the id that another gives up is somebody else.
      IF OLD.{id} IS NOT NULL THEN
        {noted_old}
      END IF;
      IF NEW.{id} IS NOT NULL THEN
        {noted_new}
      END IF;
    END IF;
  ELSEIF CAST(@usersync_apply AS BINARY) = {blind} THEN
    SIGNAL SQLSTATE '42S99' SET MESSAGE_TEXT = 'a worker writes here that doesn''t see user_outbox';
  END IF;
END //

CREATE TRIGGER {delete_trigger} AFTER DELETE ON {table} FOR EACH ROW
{version}: BEGIN
  DECLARE EXIT HANDLER FOR {unnoted} BEGIN END;
  IF (@usersync_apply IS NULL OR @usersync_apply IN ('', '0')) AND OLD.{id} IS NOT NULL THEN{own_ids}
    {noted_delete}
  END IF;
END //
