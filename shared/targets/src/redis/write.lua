-- Writes a batch of users, each only if nothing newer is stored.
--
-- KEYS: the document and the tombstone of each user, in turn.
-- ARGV: seconds to keep, then version and document of each user, in turn; '' deletes. A version
-- given as N:HELD counts only as long as the document is at version HELD (0: there is none).
-- Answers per user: 0 written, the newer version found, or the error's text.
--
-- A document starts with {"version":N, so that a look at its head tells the version.
local seconds = ARGV[1]
local tombstones = {}
for i = 2, #KEYS, 2 do tombstones[i / 2] = KEYS[i] end
local buried = redis.call('MGET', unpack(tombstones))
local answers = {}
for i = 1, #KEYS, 2 do
  local document, tombstone = KEYS[i], KEYS[i + 1]
  local number, body, expected = ARGV[i + 1], ARGV[i + 2], nil
  local version = tonumber(number)
  if not version then
    number, expected = string.match(number, '^(%d+):(%d+)$')
    version, expected = tonumber(number), tonumber(expected)
  end
  local user = (i + 1) / 2
  local head = redis.pcall('GETRANGE', document, 0, 31)
  local answer
  if type(head) == 'table' then
    answer = head.err
  else
    local held = tonumber(string.match(head, '^{"version":(%d+)') or 0)
    local newest = math.max(held, tonumber(buried[user] or 0) or 0)
    local written
    if newest > version then
      answer = newest
    elseif expected and held ~= expected then
      answer = 'CHANGED meanwhile'
    elseif body == '' then
      written = redis.pcall('SET', tombstone, number, 'EX', seconds)
      if not written.err then redis.call('DEL', document) end
    else
      written = redis.pcall('SET', document, body, 'EX', seconds)
      if buried[user] and not written.err then redis.call('DEL', tombstone) end
    end
    if written then answer = written.err or 0 end
  end
  answers[user] = answer
end
return answers
