-- What wrk sends and what it tells: see bench/wrk.py.
-- Arguments: METHOD, a file with the request's body or "-", a file with the answer's body or "-".
-- With an answer's body each answer is compared; without, wrk copies no bodies and tells the bytes it read.
local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

local function content(path)
    local file = assert(io.open(path, "rb"))
    local data = file:read("*a")
    file:close()
    return data
end

function init(args)
    wrk.method = args[1]
    if args[2] ~= "-" then
        wrk.body = content(args[2])
    end
    wrong = 0
    if args[3] ~= "-" then
        local expected = content(args[3])
        response = function(status, _, body)
            if status ~= 200 or body ~= expected then
                wrong = wrong + 1
            end
        end
    end
end

function done(summary, latency)
    local wrong = 0
    for _, thread in ipairs(threads) do
        wrong = wrong + thread:get("wrong")
    end
    local errors = summary.errors
    io.write(string.format(
        '\nRESULT {"requests": %d, "seconds": %.6f, "bytes": %d, "wrong": %d, "status": %d, "socket": %d, '
            .. '"timeouts": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
        summary.requests, summary.duration / 1e6, summary.bytes, wrong, errors.status,
        errors.connect + errors.read + errors.write, errors.timeout,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
