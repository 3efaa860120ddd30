-- Notes are written by a procedure. Where several triggers of a table write another one each by itself, MariaDB refuses a write
-- under LOCK TABLES (1442), as the restore of a dump is one. A procedure that is there stays: triggers call it. Whoever makes the
-- triggers must be let call it.
DELIMITER //

CREATE PROCEDURE IF NOT EXISTS {note}(who VARBINARY(3072), what VARCHAR(1) CHARACTER SET ascii, under_way BIGINT)
MODIFIES SQL DATA SQL SECURITY INVOKER
{version}: BEGIN
  IF who IS NOT NULL THEN
    {own_ids}
    INSERT INTO {outbox} (user_id, event, tx) VALUES (who, what, under_way);
  END IF;
END //

DELIMITER ;
CALL {note}(NULL, NULL, NULL);
