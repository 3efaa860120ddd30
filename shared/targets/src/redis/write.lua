-- Writes a batch of users, each only if nothing newer is stored.
--
-- KEYS: the document and the tombstone of each user, in turn.
-- ARGV: seconds to keep, and 1 where tombstones of before may be; then version and document of each user, in turn; '' deletes. A version
-- given as N:HELD counts only as long as the document is at version HELD (0: there is none); what
-- follows a space is the heir.
-- Answers per user: 0 written, the newer version found, or the error's text.
--
-- A document starts with {"version":N, so that a look at its head tells the version.
--
-- Tombstones were kept at <document>:deleted once, and are read there until they expire. The document of a user whose
-- id ends in :deleted has such a key too: a tombstone is a number, a document isn't. Where such a user is written, the
-- tombstone that is there moves to the heir: the key of today. (A cluster never had them, so they need be no KEYS.)
local seconds, former_too = ARGV[1], ARGV[2] == '1'
local users = #KEYS / 2
local places = {}
for user = 1, users do
  places[user] = KEYS[2 * user]
  if former_too then places[users + user] = KEYS[2 * user - 1] .. ':deleted' end
end
local buried = redis.call('MGET', unpack(places))

-- What doesn't fit 64 bits is no version: somebody else has written it, and it must keep nobody away.
local MOST = '18446744073709551615'
local function version_in(digits)
  if not digits or #digits > #MOST or (#digits == #MOST and digits > MOST) then return 0 end
  return tonumber(digits)
end

local function version_of(tombstone)
  return tombstone and version_in(string.match(tombstone, '^%d+$')) or 0
end

local function bequeath(document, heir)
  local version = redis.call('GET', document)
  local left = redis.call('TTL', document)
  if version_of(version) > version_of(redis.call('GET', heir)) then
    redis.call('SET', heir, version, 'EX', left > 0 and left or seconds)
  end
end

local answers = {}
for user = 1, users do
  local document, tombstone = KEYS[2 * user - 1], KEYS[2 * user]
  local number, body = ARGV[2 * user + 1], ARGV[2 * user + 2]
  local version, expected, heir = tonumber(number), nil, ''
  if not version then
    number, expected, heir = string.match(number, '^(%d+):?(%d*) ?(.*)$')
    version, expected = tonumber(number), tonumber(expected)
  end
  local head = redis.pcall('GETRANGE', document, 0, 31)
  local answer
  if type(head) == 'table' then
    answer = head.err
  else
    local held = version_in(string.match(head, '^{"version":(%d+)'))
    local former = version_of(buried[users + user])
    local newest = math.max(held, version_of(buried[user]), former)
    local written
    if newest > version then
      answer = newest
    elseif expected and held ~= expected then
      answer = 'CHANGED meanwhile'
    else
      if heir ~= '' and version_of(head) > 0 then bequeath(document, heir) end
      if body == '' then
        written = redis.pcall('SET', tombstone, number, 'EX', seconds)
        if not written.err then redis.call('DEL', document) end
      else
        written = redis.pcall('SET', document, body, 'EX', seconds)
        if buried[user] and not written.err then redis.call('DEL', tombstone) end
      end
      if former > 0 and not written.err then redis.call('DEL', places[users + user]) end
    end
    if written then answer = written.err or 0 end
  end
  answers[user] = answer
end
return answers
