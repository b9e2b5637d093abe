// Makes the calls of a scenario (see ../run.py) with the Node SDK.
import { createHash } from "node:crypto";
import { createReadStream, readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import OpenAI, { AzureOpenAI, toFile } from "openai";

const PNG_START = Buffer.from("89504e470d0a1a0a", "hex");

const scenario = JSON.parse(await text(process.stdin));
const options = {
  apiKey: scenario.api_key,
  maxRetries: scenario.max_retries ?? 0,
  timeout: (scenario.timeout ?? 30) * 1000,
};
const where = scenario.base_url.endsWith("/v1") ? "baseURL" : "endpoint";
const connect = (fetch) =>
  scenario.azure
    ? new AzureOpenAI({ ...options, fetch, [where]: scenario.base_url, apiVersion: scenario.azure })
    : new OpenAI({ ...options, fetch, baseURL: scenario.base_url });

async function answer(call) {
  const wire = { attempts: 0, headers: {} };
  const counting = async (url, init) => {
    wire.attempts += 1;
    const response = await fetch(url, init);
    wire.headers = Object.fromEntries(response.headers);
    return response;
  };
  const started = performance.now();
  let reply;
  try {
    reply = { ok: true, ...(await succeed(connect(counting), call)) };
  } catch (error) {
    if (!(error instanceof OpenAI.OpenAIError)) throw error;
    reply = { ok: false, ...describe(error) };
  }
  return { ...reply, ...wire, elapsed_s: (performance.now() - started) / 1000 };
}

// The files of an edit, each given in the way that the scenario names.
const WAYS = {
  path: (path) => createReadStream(path),
  file: (path) => createReadStream(path),
  bytes: (path) => toFile(readFileSync(path)),
  BytesIO: (path) => toFile(new Blob([readFileSync(path)])),
  tuple: (path) => toFile(readFileSync(path), "a.png", { type: "image/png" }),
};

async function pictures(call) {
  const found = await Promise.all((call.pictures ?? []).map((one) => WAYS[one.as](one.path)));
  if (!found.length) return {};
  return { image: found.length === 1 && !call.list ? found[0] : found };
}

async function succeed(sdk, call) {
  if (call.method === "models.list") {
    const ids = [];
    for await (const model of sdk.models.list()) ids.push(model.id);
    return { ids };
  }
  const result = await request(sdk, call);
  if (call.args?.stream) return stream(result);
  const common = {
    request_id: result._request_id,
    created: result.created,
    type_of_created: typeof result.created,
    raw_keys: Object.keys(result).sort(),
  };
  if (call.method === "models.retrieve") {
    return { id: result.id, owned_by: result.owned_by, ...common };
  }
  return { ...common, data: await Promise.all(result.data.map((item) => image(item, call))) };
}

// The Node SDK has no extra_body: unknown keys of the body are sent as they are.
async function request(sdk, call) {
  const [group, method] = call.method.split(".");
  const { extra_body: extraBody, extra_headers: headers, timeout, ...args } = call.args ?? {};
  const body = { ...args, ...(await pictures(call)) };
  if (call.id) return sdk[group][method](call.id, { headers });
  const own = timeout && { timeout: timeout * 1000 };
  return sdk[group][method]({ ...body, ...extraBody }, { headers, ...own });
}

// Every event, and the error that ended them, if one did.
async function stream(result) {
  const events = [];
  try {
    for await (const item of result) events.push(event(item));
  } catch (error) {
    if (!(error instanceof OpenAI.OpenAIError)) throw error;
    return { ok: false, events, ...describe(error) };
  }
  return { events };
}

function event(item) {
  return {
    type: item.type,
    size: item.size,
    total_tokens: item.usage.total_tokens,
    b64_sha256: sha256(Buffer.from(item.b64_json, "base64")),
  };
}

async function image(item, call) {
  const picture = item.b64_json ? Buffer.from(item.b64_json, "base64") : null;
  const described = {
    url: item.url ?? null,
    b64_sha256: sha256(picture),
    b64_len: item.b64_json?.length ?? null,
    png_size: pngSize(picture),
    revised_prompt: item.revised_prompt ?? null,
    raw_keys: Object.keys(item).sort(),
  };
  if (call.fetch && item.url) described.fetched = await download(item.url);
  return described;
}

// As a browser would: the URL alone, no key.
async function download(url) {
  const response = await fetch(url);
  const body = Buffer.from(await response.arrayBuffer());
  return {
    status: response.status,
    content_type: response.headers.get("content-type"),
    sha256: sha256(body),
    len: body.length,
    png_size: pngSize(body),
  };
}

function sha256(content) {
  return content && createHash("sha256").update(content).digest("hex");
}

function pngSize(content) {
  if (!content?.subarray(0, 8).equals(PNG_START)) return null;
  return [content.readUInt32BE(16), content.readUInt32BE(20)];
}

function describe(error) {
  return {
    class: error.constructor.name,
    status: error.status ?? null,
    code: error.code ?? null,
    type: error.type ?? null,
    param: error.param ?? null,
    message: error.message,
    request_id: error.requestID ?? null,
  };
}

async function runAll(calls, concurrency) {
  const replies = [];
  let next = 0;
  const worker = async () => {
    while (next < calls.length) {
      const index = next++;
      replies[index] = await answer(calls[index]);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  return replies;
}

for (const reply of await runAll(scenario.calls, scenario.concurrency ?? 1)) {
  console.log(JSON.stringify(reply));
}
