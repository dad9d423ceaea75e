// Walks through the hosted service's TypeScript SDK, unmodified, behind a proxy that loses answers on command.
// Arguments: URL KEY PICTURE. Prints what each call gave, as JSON.
import { readFile } from "node:fs/promises";
import http from "node:http";
import { OctoAIClient } from "@octoai/sdk";

const [url, key, picture] = process.argv.slice(2);
const said = {};
const checkpoint = "tunesmith:tiny-shapes";

// Passes every request on. While `losing` is above 0, the gateway's answer is thrown away and the caller reads 503.
let losing = 0;
let asked = 0;
let replayed = null;
const proxy = http.createServer((request, response) => {
  asked += 1;
  const onward = http.request(new URL(request.url, url), { method: request.method, headers: request.headers });
  onward.on("response", (answer) => {
    replayed = answer.headers["idempotent-replay"] ?? null;
    if (losing > 0) {
      losing -= 1;
      answer.resume();
      answer.on("end", () => response.writeHead(503).end());
    } else {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    }
  });
  request.pipe(onward);
});
await new Promise((ready) => proxy.listen(0, "127.0.0.1", ready));

const here = `http://127.0.0.1:${proxy.address().port}`;
const client = (apiKey) =>
  new OctoAIClient({ apiKey, environment: { default: here, imageGen: here, textGen: here } });
const octoai = client(key);

const failure = (call) =>
  call.then(
    () => ["nothing was thrown"],
    (error) => [error.constructor.name, error.statusCode ?? null, error.body ?? error.message],
  );

const created = await octoai.assetLibrary.create({
  assetType: "file",
  name: "cat",
  data: { assetType: "file", fileFormat: "png" },
});
const bytes = await readFile(picture);
await fetch(created.transferApi.putUrl, { method: "PUT", body: bytes });
said.completed = await octoai.assetLibrary.completeUpload(created.asset.id, { token: created.token });
await octoai.assetLibrary.waitForReady(created.asset.id);
const { asset, transferApi } = await octoai.assetLibrary.get("cat", { transferApiType: "sts" });
said.asset = asset;
said.transfer = transferApi.type;
said.downloaded = bytes.equals(Buffer.from(await (await fetch(transferApi.getUrl)).arrayBuffer()));
said.listed = await octoai.assetLibrary.list({ assetType: ["file", "lora"], fileFormat: ["png"], limit: 5, isPublic: false });
said.catalogue = await octoai.assetLibrary.get(checkpoint);
said.upload = await failure(octoai.assetLibrary.upload(bytes, { assetType: "file", name: "dog", data: { assetType: "file" } }));

const details = (steps) => ({
  tuneType: "lora_tune",
  baseCheckpoint: { checkpointId: checkpoint },
  files: [{ fileId: asset.id, caption: "a cat, sks" }],
  steps,
  triggerWords: ["sks"],
});
losing = 2;
asked = 0;
const tune = await octoai.fineTuning.create({ name: "cats", details: details(10) });
said.retried = { asked, replayed, tune, total: (await octoai.fineTuning.list({ name: "cats" })).total };
asked = 0;
said.taken = { error: await failure(octoai.fineTuning.create({ name: "cats", details: details(11) })), asked };

said.filtered = (await octoai.fineTuning.list({ triggerWords: ["sks"], tuneType: "lora_tune", limit: 1, offset: 0 })).data.length;
said.cancelled = [(await octoai.fineTuning.cancel(tune.id)).status, (await octoai.fineTuning.cancel(tune.id)).status];
said.deleted = await octoai.fineTuning.delete(tune.id);
said.gone = await failure(octoai.fineTuning.get(tune.id));
said.wrong = await failure(octoai.fineTuning.create({ name: "wrong", details: { ...details(0), seed: -1 } }));
said.stranger = await failure(client("ts_wrong").fineTuning.list());
said.dropped = await octoai.assetLibrary.delete(asset.id);

console.log(JSON.stringify(said));
proxy.close();
proxy.closeAllConnections();
