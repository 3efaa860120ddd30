-- How the triggers are that note changes, for whoever may execute this and nothing else: a server shows triggers to those
-- who may make some. The same for the procedure that they call. NULL where there is none of this name. One that is there stays: with it would go the rights to execute it.
DELIMITER //

CREATE FUNCTION IF NOT EXISTS {watch}(named VARCHAR(64)) RETURNS LONGTEXT CHARACTER SET utf8mb4
READS SQL DATA SQL SECURITY DEFINER
RETURN COALESCE((SELECT CONCAT(event_object_table, CHAR(10 USING utf8mb4), action_statement) FROM information_schema.triggers
  WHERE trigger_schema = {schema} AND trigger_name = named), (SELECT CONCAT(CHAR(10 USING utf8mb4), routine_name)
  FROM information_schema.routines WHERE routine_schema = {schema} AND routine_name = named AND routine_type = 'PROCEDURE')) //

DELIMITER ;
