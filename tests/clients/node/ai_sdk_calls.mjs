// Makes the calls of a scenario (see ../run.py) with the AI SDK, whose providers are libraries here.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";
import { createAzure } from "@ai-sdk/azure";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const scenario = JSON.parse(await text(process.stdin));
const baseURL = `${scenario.url}/v1`;
const apiKey = scenario.api_key;
const MODEL = "gpt-image-1";

const models = {
  "@ai-sdk/openai": () => createOpenAI({ baseURL, apiKey }).image(MODEL),
  "@ai-sdk/openai, any name": () => createOpenAI({ baseURL, apiKey }).image("qwen-image-2.0"),
  "@ai-sdk/openai-compatible": () =>
    createOpenAICompatible({ name: "gateway", baseURL, apiKey }).imageModel(MODEL),
  "@ai-sdk/azure": () => createAzure({ baseURL: `${scenario.url}/openai`, apiKey }).image(MODEL),
};

async function answer({ library, prompt: text, picture: given }) {
  const prompt = given ? { text, images: [Buffer.from(given, "base64")] } : text;
  try {
    const { image } = await generateImage({ model: models[library](), prompt, size: "1024x1024" });
    const picture = Buffer.from(image.uint8Array);
    return { ok: true, sha256: createHash("sha256").update(picture).digest("hex") };
  } catch (error) {
    const cause = error.lastError ?? error;
    return { ok: false, class: cause.name, message: cause.message, status: cause.statusCode };
  }
}

for (const reply of await Promise.all(scenario.calls.map(answer))) {
  console.log(JSON.stringify(reply));
}
