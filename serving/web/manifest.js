// The manifest inside an mp4: a `uuid` box among its outermost boxes (ISO/IEC 14496-12, 4.2 and 11.1).

const TYPE = "5f3a0c586a0b4d0e9a552b6a7b1d3c01";

const hex = (bytes) => Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");

export function manifestIn(buffer) {
  const view = new DataView(buffer);
  const bytes = new Uint8Array(buffer);
  const name = (at) => String.fromCharCode(...bytes.subarray(at + 4, at + 8));
  if (bytes.length < 12 || name(0) !== "ftyp") return null;
  for (let at = 0; at + 8 <= bytes.length; ) {
    let size = view.getUint32(at);
    if (size === 1) size = Number(view.getBigUint64(at + 8));
    if (size === 0) size = bytes.length - at;
    if (size < 8) return null;
    if (name(at) === "uuid" && hex(bytes.subarray(at + 8, at + 24)) === TYPE) {
      return JSON.parse(new TextDecoder().decode(bytes.subarray(at + 24, at + size)));
    }
    at += size;
  }
  return null;
}

// For people: without the pictures, which are long.
export const readable = (manifest) => JSON.stringify({ ...manifest, pictures: (manifest.pictures || []).map((one) => `${one.length} characters of base64`) }, null, 2);
