-- How the triggers are that note changes, for whoever may execute this and nothing else: a server shows triggers to those
-- who may make some. NULL where there is none of this name. One that is there stays: with it would go the rights to execute it.
DELIMITER //

CREATE FUNCTION IF NOT EXISTS {watch}(named VARCHAR(64)) RETURNS LONGTEXT CHARACTER SET utf8mb4
READS SQL DATA SQL SECURITY DEFINER
RETURN (SELECT CONCAT(event_object_table, CHAR(10 USING utf8mb4), action_statement) FROM information_schema.triggers
  WHERE trigger_schema = {schema} AND trigger_name = named) //

DELIMITER ;
