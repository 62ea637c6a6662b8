"""What Redis does in one step, in Lua: nothing can come between the commands of a script.

An entry of a stream has the fields n (how often it was delivered before it came to its present place), x (when it
expires, in milliseconds of Redis's clock; 0: never), i (the message's id), t (its content type) and b (its body), in
this order. It is in the stream as long as the message waits or is open, and no longer.
"""

from __future__ import annotations

import hashlib
from typing import Final

from msgbus_redis.names import GROUP, NONE

_COMMON: Final = (
    f"local GROUP, NONE = '{GROUP}', '{NONE}'"
    + """
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function text(number) return string.format('%.0f', number) end
local function exists(key) return redis.call('EXISTS', key) == 1 end

-- Make a stream and its group, unless they are there.
local function make(stream)
    local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    if made.err and string.sub(made.err, 1, 9) ~= 'BUSYGROUP' then error(made) end
end

-- Without memory Redis refuses what needs some, but not in the middle of a script. Whoever consumes makes room, so that
-- has to go on: begin with what needs none.
local function write_without_memory(key) redis.call('PERSIST', key) end

-- Say that somebody consumes, which holds for some milliseconds. If nobody says so any more, Redis itself was away or
-- frozen, or all are gone. So all leases go before the first of them ends, and those who live can renew theirs.
-- What is the consumer's own goes when this is not said again in `own` milliseconds.
local function renew(stream, lease, members, consumer, ms, own)
    redis.call('ZADD', lease, text(now() + ms), consumer)
    redis.call('ZREM', lease .. ':silent', consumer)
    redis.call('PEXPIRE', lease, math.floor(ms * 0.6))
    if members ~= NONE then redis.call('SADD', members, stream) end
    if own ~= '0' then
        redis.call('PEXPIRE', stream, own)
        if members ~= NONE then redis.call('PEXPIRE', members, own) end
    end
end

local function begins(name, prefix) return string.sub(name, 1, #prefix) == prefix end

-- The consumers that Redis knows for a stream. Each is a list: 'name', its name, 'pending', ...
local function consumers(stream)
    local names = {}
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do names[#names + 1] = consumer[2] end
    return names
end

-- Put an open message of a consumer at the end of its stream, where it waits again. It may be none of its any more.
local function give_back(stream, consumer, id)
    local held = redis.call('XPENDING', stream, GROUP, id, id, 1, consumer)[1]
    if not held then return end
    local entry = redis.call('XRANGE', stream, id, id)[1]
    redis.call('XACK', stream, GROUP, id)
    if not entry then return end
    local fields = entry[2]
    fields[2] = text((tonumber(fields[2]) or 0) + held[4])
    redis.call('XDEL', stream, id)
    redis.call('XADD', stream, '*', unpack(fields))
end

-- Give back up to `most` of what a consumer has, and forget it if that was all.
local function dismiss(stream, lease, consumer, most)
    local held = redis.call('XPENDING', stream, GROUP, '-', '+', most, consumer)
    for _, row in ipairs(held) do give_back(stream, consumer, row[1]) end
    if #held < most then
        redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer)
        redis.call('ZREM', lease, consumer)
    end
    return #held
end

-- Remove what has expired, of the first 100.
local function purge(stream, time)
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', 100)) do
        local expires = tonumber(entry[2][4]) or 0
        if expires > 0 and expires <= time then
            redis.call('XACK', stream, GROUP, entry[1])
            redis.call('XDEL', stream, entry[1])
        end
    end
end
"""
)


class Script:
    """A script; Redis knows it by its hash once it was loaded."""

    def __init__(self, body: str) -> None:
        self.text = _COMMON + body
        self.hash = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


SEND: Final = Script("""
-- KEYS: stream or NONE, set of streams or NONE. ARGV: make the stream?, limit, ttl in ms or '', id, content type, body.
-- Returns how many streams have it; or -1 and which one is full, and then none has it.
local targets, gone, time = {}, {}, now()
if KEYS[1] ~= NONE then
    if ARGV[1] == '1' then make(KEYS[1]) end
    if exists(KEYS[1]) then targets[1] = KEYS[1] end
end
if KEYS[2] ~= NONE then
    for _, stream in ipairs(redis.call('SMEMBERS', KEYS[2])) do
        if exists(stream) then targets[#targets + 1] = stream else gone[#gone + 1] = stream end
    end
end
local limit = tonumber(ARGV[2])
for _, stream in ipairs(targets) do
    if redis.call('XLEN', stream) >= limit then purge(stream, time) end
    if redis.call('XLEN', stream) >= limit then return {-1, stream} end
end
local expires = ARGV[3] == '' and '0' or text(time + ARGV[3])
for _, stream in ipairs(targets) do
    redis.call('XADD', stream, '*', 'n', '0', 'x', expires, 'i', ARGV[4], 't', ARGV[5], 'b', ARGV[6])
end
for _, stream in ipairs(gone) do redis.call('SREM', KEYS[2], stream) end
return {#targets}
""")

START: Final = Script("""
-- KEYS: stream, lease, set of streams or NONE. ARGV: consumer, prefix of its names, lease in ms, own in ms or 0.
-- Returns the id of the stream's last entry, and what the consumer's predecessors had open: id, fields, count.
write_without_memory(KEYS[2])
make(KEYS[1])
renew(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[3], ARGV[4])
local open = {}
for _, name in ipairs(consumers(KEYS[1])) do
    if begins(name, ARGV[2]) and name ~= ARGV[1] then
        repeat
            local held = redis.call('XPENDING', KEYS[1], GROUP, '-', '+', 100, name)
            for _, row in ipairs(held) do
                local entry = redis.call('XCLAIM', KEYS[1], GROUP, ARGV[1], 0, row[1])[1]
                if entry then
                    open[#open + 1] = {entry[1], entry[2], row[4]}
                else
                    redis.call('XACK', KEYS[1], GROUP, row[1])
                end
            end
        until #held < 100
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], GROUP, name)
        redis.call('ZREM', KEYS[2], name)
    end
end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then return {info[at + 1], open} end
end
""")

BEAT: Final = Script("""
-- KEYS: stream, lease, set of streams or NONE. ARGV: consumer, lease in ms, own in ms or 0.
-- Says that it is still there, and gives back what others have open who did not say so. Returns whether all is there.
if not exists(KEYS[1]) then return 0 end
write_without_memory(KEYS[2])
renew(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3])
local time, silent = now(), KEYS[2] .. ':silent'
for _, name in ipairs(consumers(KEYS[1])) do
    local ends = redis.call('ZSCORE', KEYS[2], name)
    if not ends then  -- it has as long from now on: see renew
        redis.call('ZADD', silent, 'NX', text(time + ARGV[2]), name)
        redis.call('PEXPIRE', silent, ARGV[2] * 3)
        ends = redis.call('ZSCORE', silent, name)
    end
    if tonumber(ends) < time then
        dismiss(KEYS[1], KEYS[2], name, 100)
        redis.call('ZREM', silent, name)
    end
end
return 1
""")

LEAVE: Final = Script("""
-- KEYS: stream, lease, set of streams or NONE. ARGV: prefix of the consumer's names, own in ms or 0.
if ARGV[2] ~= '0' then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[2] .. ':silent')
    if KEYS[3] ~= NONE then redis.call('SREM', KEYS[3], KEYS[1]) end
    return 1
end
if not exists(KEYS[1]) then return 0 end
for _, name in ipairs(consumers(KEYS[1])) do
    if begins(name, ARGV[1]) then
        repeat until dismiss(KEYS[1], KEYS[2], name, 100) < 100
    end
end
for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if begins(name, ARGV[1]) then redis.call('ZREM', KEYS[2], name) end
end
return 1
""")

REMOVE: Final = Script("""
-- KEYS: stream. ARGV: id. It is done with.
redis.call('XACK', KEYS[1], GROUP, ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
""")

GIVE_BACK: Final = Script("""
-- KEYS: stream. ARGV: consumer, id.
give_back(KEYS[1], ARGV[1], ARGV[2])
return 1
""")

INSPECT: Final = Script("""
-- KEYS: stream, lease. Returns how many consume and how many messages wait, or nothing where there is no stream.
if not exists(KEYS[1]) then return {} end
local time = now()
purge(KEYS[1], time)
local waiting = redis.call('XLEN', KEYS[1]) - redis.call('XPENDING', KEYS[1], GROUP)[1]
return {redis.call('ZCOUNT', KEYS[2], text(time), '+inf'), waiting}
""")

ALL: Final = (SEND, START, BEAT, LEAVE, REMOVE, GIVE_BACK, INSPECT)
