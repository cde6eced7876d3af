// A request as curl and as Python, to copy: what the form would send, the key left to be filled in.

const quote = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

export function asCurl(task, pictures, fields, hasKey) {
  const lines = [`curl -sS ${location.origin}/generate/${task}`];
  if (hasKey) lines.push(`-H "Authorization: Bearer $STILLMOTION_API_KEY"`);
  for (const [name, file] of Object.entries(pictures)) lines.push(`-F ${name}=@${quote(file.name)}`);
  for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${quote(`${name}=${value}`)}`);
  return lines.join(" \\\n  ");
}

const METHODS = {
  "image-to-video": "generate", "text-to-video": "text_to_video",
  "frame-interpolation": "frame_interpolation", "multi-view": "multi_view",
};

function literal(value) {
  if (/^-?\d+(\.\d+)?$/.test(value)) return value;
  return value === "true" ? "True" : JSON.stringify(value);
}

export function asPython(task, pictures, fields, hasKey) {
  const positional = Object.values(pictures).map((file) => JSON.stringify(file.name));
  const named = Object.entries(fields).map(([name, value]) => `${name}=${literal(value)}`);
  return [
    "from stillmotion import Client",
    "",
    ...(hasKey ? ["# The key is read from STILLMOTION_API_KEY."] : []),
    `with Client(${JSON.stringify(location.origin)}) as client:`,
    `    job = client.${METHODS[task]}(${[...positional, ...named].join(", ")})`,
    "    client.download_to(job, \"video.mp4\")",
    "",
  ].join("\n");
}
