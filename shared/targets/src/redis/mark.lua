-- Counts the mark up; makes a new one where there is none, or one that is older than what was seen before.
--
-- KEYS: the mark. ARGV: when the one seen last was made, and its count; when a new one is made.
-- Answers the mark: `<made> <count>`.
local made, count = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
made, count = tonumber(made or 0), tonumber(count or 0)
local known, seen = tonumber(ARGV[1]), tonumber(ARGV[2])
if made == 0 or made < known or (made == known and count < seen) then
  made, count = tonumber(ARGV[3]), 0
end
local mark = string.format('%.0f %.0f', made, count + 1)
redis.call('SET', KEYS[1], mark)
return mark
