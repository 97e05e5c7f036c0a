// ONNX Runtime Web, from this page or from a network address whose content must have the hash that the page names.

import { unpack } from "./bytes.js";

export async function loadRuntime(facts) {
  if (typeof WebAssembly === "undefined") {
    throw new Error("This browser has no WebAssembly, which runs the nets. Open the page in a newer browser.");
  }
  const [script, wasm] = await Promise.all([content(facts, "script"), content(facts, "wasm")]);
  const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const runtime = await import(address);
  URL.revokeObjectURL(address);
  runtime.env.wasm.numThreads = 1;
  runtime.env.wasm.wasmBinary = wasm.buffer;
  runtime.env.logLevel = "error";
  return runtime;
}

async function content(facts, part) {
  if (facts.kind === "inline") return unpack(`runtime-${part}`);
  const { url, integrity } = facts[part];
  try {
    const response = await fetch(url, { integrity, credentials: "omit" });
    if (!response.ok) throw new Error(`answer ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Error(
      `ONNX Runtime Web could not be loaded from ${url} (${error.message}). ` +
        "Connect to a network, or make the page again with --runtime inline, which needs none."
    );
  }
}
